"""Models: equal models are equal files, foreign code stays out, custom classes of the project are found again."""

import sys
import textwrap
import zipfile

import numpy as np
import pytest

from mlnb.errors import ScrapError
from mlnb.pipeline.models import is_project_module, read_keras, read_sklearn, steady_archive, write_keras, write_sklearn


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a module of its own, and the process standing in it."""
    (tmp_path / "settings.ini").write_text("")
    (tmp_path / "own_features.py").write_text(
        textwrap.dedent("""
        import numpy as np
        from sklearn.base import BaseEstimator, TransformerMixin
        def double(x): return x * 2
        class Shift(BaseEstimator, TransformerMixin):
            def __init__(self, by=1): self.by = by
            def fit(self, x, y=None): self.fitted_ = True; return self
            def transform(self, x): return x + self.by
    """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("own_features", "own_layers"):
        sys.modules.pop(name, None)


x, y = np.arange(24.0).reshape(8, 3), np.array([0, 1] * 4)


def sklearn_models():
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
    from sklearn.svm import SVC

    return {
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
        "svc": SVC(),
        "forest": RandomForestClassifier(3, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=2, random_state=0),
        "log": make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()),
        "hist": HistGradientBoostingClassifier(max_iter=2, random_state=0),
        "grid": GridSearchCV(LogisticRegression(), {"C": [1, 2]}, cv=2),
        "columns": make_pipeline(
            make_column_transformer((OneHotEncoder(handle_unknown="ignore"), [0]), (StandardScaler(), [1, 2])),
            LogisticRegression(),
        ),
    }


@pytest.mark.parametrize("name", sklearn_models())
def test_sklearn_round_trip_and_same_bytes(name, tmp_path):
    first, second = (sklearn_models()[name].fit(x, y) for _ in range(2))
    if name == "grid":  # it keeps how long each fit took, which is not the same twice
        first.cv_results_ = second.cv_results_ = {}
        first.refit_time_ = second.refit_time_ = 0.0
    write_sklearn(first, tmp_path / "a.skops")
    write_sklearn(second, tmp_path / "b.skops")
    assert (tmp_path / "a.skops").read_bytes() == (tmp_path / "b.skops").read_bytes()
    assert np.array_equal(read_sklearn(tmp_path / "a.skops").predict(x), first.predict(x))


def test_other_weights_other_bytes(tmp_path):
    from sklearn.linear_model import LinearRegression

    write_sklearn(LinearRegression().fit(x, y), tmp_path / "a.skops")
    write_sklearn(LinearRegression().fit(x, 1 - y), tmp_path / "b.skops")
    assert (tmp_path / "a.skops").read_bytes() != (tmp_path / "b.skops").read_bytes()


def test_shared_objects_stay_shared(tmp_path):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    write_sklearn(make_pipeline(scaler, scaler).fit(x), tmp_path / "a.skops")
    back = read_sklearn(tmp_path / "a.skops")
    assert back[0] is back[1]


def test_types_of_the_project_are_trusted(project):
    import own_features
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = make_pipeline(own_features.Shift(by=3), FunctionTransformer(own_features.double)).fit(x)
    write_sklearn(model, project / "m.skops")
    assert np.array_equal(read_sklearn(project / "m.skops").transform(x), (x + 3) * 2)


def test_types_from_elsewhere_are_not(project, monkeypatch):
    import own_features

    write_sklearn(own_features.Shift().fit(x), project / "m.skops")
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "settings.ini").write_text("")
    monkeypatch.chdir(project / "elsewhere")
    with pytest.raises(ScrapError, match="own_features.Shift") as e:
        read_sklearn(project / "m.skops")
    assert e.value.where == "ref" and "module of the project" in e.value.expected


@pytest.mark.parametrize("module", ["os", "posix", "sys", "numpy", "json", "no_such_module", "skops"])
def test_no_project_module(module, project):
    assert not is_project_module(module, project)


def test_project_module(project):
    assert is_project_module("own_features") and is_project_module("own_features.inner", project)


@pytest.mark.parametrize("function", [eval, exec, print])
def test_builtins_are_not_trusted(function, tmp_path):
    from sklearn.preprocessing import FunctionTransformer

    with pytest.raises(ScrapError):
        write_sklearn(FunctionTransformer(function), tmp_path / "m.skops")


def test_steady_archive_keeps_files_in_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("assets/words.json", '{"date_saved": 1}')
        archive.writestr("7.npy", b"n")
        archive.writestr("schema.json", '{"file": "7.npy", "content": {"file": {"__id__": 7, "x": 1.5}}}')
    steady_archive(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert archive.read("assets/words.json") == b'{"date_saved": 1}' and archive.read("1.npy") == b"n"
        assert archive.read("schema.json") == b'{"file": "1.npy", "content": {"file": {"__id__": 1, "x": 1.5}}}'


@pytest.mark.tensorflow
def test_keras(project, tmp_path):
    import keras

    (project / "own_layers.py").write_text(
        textwrap.dedent("""
        import keras
        @keras.saving.register_keras_serializable(package="own")
        class Scale(keras.layers.Layer):
            def call(self, x): return x * 3.0
    """)
    )
    import own_layers

    def make():
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        inputs = keras.Input((3,))
        dense = keras.layers.Dense(2)
        model = keras.Model(inputs, own_layers.Scale()(dense(inputs)))
        model.compile("adam", "mse")
        model.fit(x, np.zeros((8, 2)), verbose=0)
        return model

    meta = [write_keras(make(), tmp_path / f"{n}.keras") for n in "ab"]
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    assert meta[0]["parameters"] == 8 and meta[0]["modules"] == ["own_layers"]
    expected = make().predict(x, verbose=0)

    keras.saving.get_custom_objects().clear()
    del sys.modules["own_layers"]  # as in another stage
    back = read_keras(tmp_path / "a.keras", meta[0])
    assert np.allclose(back.predict(x, verbose=0), expected) and back.optimizer.iterations.numpy() == 1

    keras.saving.get_custom_objects().clear()
    del sys.modules["own_layers"]
    with pytest.raises(ScrapError, match="Scale") as e:
        read_keras(tmp_path / "a.keras", {})
    assert "register_keras_serializable" in e.value.cure
    inputs = keras.Input((3,))
    with pytest.raises(ScrapError, match="lambda"):
        write_keras(keras.Model(inputs, keras.layers.Lambda(lambda v: v)(inputs)), tmp_path / "l.keras")
