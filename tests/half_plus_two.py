"""TensorFlow Serving's example model, half_plus_two, built here: what the wire cases ask."""
import subprocess
import sys
from pathlib import Path


def write_half_plus_two(folder: Path, half: float = 0.5, plus: float = 2.0) -> Path:
    """A SavedModel: y = half * x + plus, with signatures for predict, classify and regress; imports TensorFlow."""
    from mlnb.training.quiet import import_quietly, quiet

    tf = import_quietly("tensorflow")

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
        def predict(self, x): return {"y": half * x + plus}

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="inputs")])
        def regress_x2(self, inputs): return {"outputs": half * inputs + 3.0}

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="inputs")])
        def classify_x2(self, inputs): return {"scores": half * inputs + 3.0}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def regress(self, inputs): return {"outputs": half * self.read(inputs) + plus}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def classify(self, inputs): return {"scores": half * self.read(inputs) + plus}

        def read(self, inputs): return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    model = Model()
    signatures = {"serving_default": model.predict, "regress_x_to_y": model.regress, "classify_x_to_y": model.classify,
                  "regress_x2_to_y3": model.regress_x2, "classify_x2_to_y3": model.classify_x2}
    with quiet(): tf.saved_model.save(model, str(folder), signatures)
    return folder


def build(*folders: str) -> None:
    """Write models in a process of its own, so that the test process loads no TensorFlow: FOLDER or FOLDER:HALF:PLUS each."""
    subprocess.run([sys.executable, __file__, *folders], check=True, cwd=Path(__file__).parents[1])


if __name__ == "__main__":
    for given in sys.argv[1:]:
        path, *numbers = given.split(":")
        write_half_plus_two(Path(path), *map(float, numbers))
