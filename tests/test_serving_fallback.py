"""Fallbacks under concurrency: no answer reaches another's request, a breaker probes once, and nothing hides a client's mistake."""

import asyncio
import json
import random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import ServingError
from mlnb.serving.breaker import AnswerCache, Breaker
from mlnb.serving.codes import Refusal
from mlnb.serving.fallback import Fallback, Step, read_fallbacks, smooth
from mlnb.serving.messages import Example


class Tensor(NamedTuple):
    """As signatures describe an output."""

    name: str
    dtype: str
    shape: tuple | None


SCORES = {"scores": Tensor("s:0", "DT_FLOAT", (-1, 1))}


def value(number=-1.0, **more):
    """A fallback that answers with a constant."""
    return Fallback("m", 0.02, [Step("value", {"scores": number}, 0.02)], **more)


def one(number): return {"x": np.array([[number]], "float32")}


def test_a_late_answer_reaches_nobody_else():
    """Two hundred requests at once to a model that answers late, early, or fails: each gets its own answer or a marked constant."""

    async def many():
        draw = random.Random(0)
        fallback, late = value(), []

        async def model(number, seconds):
            try: await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                late.append(number)
                raise
            if number % 7 == 0: raise Refusal("INTERNAL", "broken")
            return {"scores": np.array([[number]], "float32")}

        async def request(number):
            seconds = draw.choice([0, 0, 0.001, 0.5])
            answer, mark = await smooth(fallback, lambda: model(number, seconds), one(number), described=SCORES)
            return number, float(answer["scores"][0, 0]), mark

        found = await asyncio.gather(*(request(i) for i in range(200)))
        for number, score, mark in found:
            assert (score == number and mark == "") or (score == -1 and mark in ("value;reason=deadline", "value;reason=failure")), (number, score, mark)
            assert (number % 7 == 0 or number in late) == bool(mark)
        assert {mark for _, _, mark in found} == {"", "value;reason=deadline", "value;reason=failure"}

    asyncio.run(many())


def test_the_cache_answers_only_the_same_question():
    """Signature, wanted outputs, names, types, shapes and values all count; a kept answer is a copy."""

    async def story():
        batch = np.arange(8, dtype="float32").reshape(4, 2)
        fallback = Fallback("m", 0.02, [Step("cache", {}, 0.02)], cache=AnswerCache())

        async def good(): return {"scores": batch[1:2]}

        async def bad(): raise Refusal("UNAVAILABLE", "overloaded")

        await smooth(fallback, good, one(1))
        batch[:] = 99
        answer, mark = await smooth(fallback, bad, one(1))
        assert answer["scores"].tolist() == [[2, 3]] and mark == "cache;reason=overload;age=0"
        for other in ({"x": np.array([[1]], "int32")}, {"x": np.array([1], "float32")}, {"y": np.array([[1]], "float32")}, one(2)):
            with pytest.raises(Refusal, match="overloaded"): await smooth(fallback, bad, other)
        with pytest.raises(Refusal): await smooth(fallback, bad, one(1), signature="other")
        with pytest.raises(Refusal): await smooth(fallback, bad, one(1), outputs=["scores"])

    asyncio.run(story())


def test_texts_that_look_alike_are_different_questions():
    """Where one value ends and the next begins."""
    texts = [np.array(["ab", "c"], object), np.array(["a", "bc"], object), np.array([b"ab", b"c"], object), np.array(["ab,c"], object)]
    assert len({AnswerCache.key("s", {"x": array}, None) for array in texts}) == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60), st.integers(0, 5)), max_size=60))
def test_a_cache_stays_in_its_bounds(puts):
    """Entries and bytes, counted right whatever is put in again."""
    now = [0.0]
    cache = AnswerCache(entries=4, seconds=8, size=1500, clock=lambda: now[0])
    for key, size, step in puts:
        now[0] += step
        cache.put(bytes([key]), {"a": np.full(size, key, "float64")})
        assert len(cache.kept) <= 4 and cache.held <= 1500
        assert cache.held == sum(size for _, size, _ in cache.kept.values())
        for other in range(10):
            found = cache.get(bytes([other]))
            assert found is None or (found[1] <= 8 and set(found[0]["a"].tolist()) <= {float(other)})


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "PERMISSION_DENIED", "OUT_OF_RANGE"])
def test_a_mistake_of_the_client_is_answered_as_such(code):
    """And is no failure of the model."""

    async def story():
        fallback = value(breaker=Breaker(failures=1))

        async def refuse(): raise Refusal(code, "yours")

        for _ in range(3):
            with pytest.raises(Refusal, match="yours"): await smooth(fallback, refuse, one(1))

    asyncio.run(story())


def test_a_breaker_spares_a_failing_model_and_probes_once():
    """Of fifty requests at once, one is sent to see; when it succeeds all go through again."""

    async def story():
        now, asked, fine = [0.0], [], [False]
        fallback = value(breaker=Breaker(3, 5.0, lambda: now[0]))

        async def model():
            asked.append(1)
            await asyncio.sleep(0)
            if not fine[0]: raise ZeroDivisionError("bug")
            return {"scores": np.ones((1, 1))}

        async def fifty(): return [mark for _, mark in await asyncio.gather(*(smooth(fallback, model, one(1)) for _ in range(50)))]

        for _ in range(3): assert (await smooth(fallback, model, one(1)))[1] == "value;reason=failure"
        assert set(await fifty()) == {"value;reason=open"} and len(asked) == 3
        now[0] = 6
        marks = await fifty()
        assert len(asked) == 4 and sorted(marks)[0] == "value;reason=failure" and marks.count("value;reason=open") == 49
        now[0] = 6 + 9.9
        assert set(await fifty()) == {"value;reason=open"}, "the pause has doubled"
        now[0], fine[0] = 6 + 10.1, True
        assert (await fifty()).count("") == 1
        assert set(await fifty()) == {""}

    asyncio.run(story())


def test_a_probe_whose_client_leaves_does_not_block_the_next():
    """The place of the probe is given back."""

    async def story():
        now = [0.0]
        fallback = value(breaker=Breaker(1, 1.0, lambda: now[0]))

        async def broken(): raise Refusal("INTERNAL", "no")

        async def slow(): await asyncio.sleep(10)

        async def fine(): return {"scores": np.ones(1)}

        await smooth(fallback, broken, one(1))
        now[0] = 2
        fallback.deadline = 10
        task = asyncio.create_task(smooth(fallback, slow, one(1)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        assert (await smooth(fallback, fine, one(1)))[1] == ""

    asyncio.run(story())


def test_an_impatient_client_opens_no_breaker():
    """Its deadline is shorter than the model's; it gets the fallback, the model no blame."""

    async def story():
        fallback = Fallback("m", 5.0, [Step("value", {"scores": 1.0}, 5.0)], breaker=Breaker(1))

        async def slow(): await asyncio.sleep(5)

        for _ in range(2): assert (await smooth(fallback, slow, one(1), seconds=0.005))[1] == "value;reason=deadline"

    asyncio.run(story())


def test_another_model_answers_or_is_late_itself():
    """Then the next in the list does; with none left the first error stands."""

    async def story():
        calls = []

        async def broken(): raise Refusal("RESOURCE_EXHAUSTED", "queue is full")

        async def other(model, version, label, signature, feeds, outputs):
            calls.append((model, version, label, signature, list(feeds), outputs))
            if len(calls) == 1: return {"scores": np.array([[0.5]], "float32")}
            if len(calls) == 2: await asyncio.sleep(5)
            raise Refusal("NOT_FOUND", "Servable not found")

        made = read_fallbacks({"m": {"deadline_ms": 20, "breaker": None, "to": [{"model": "small", "label": "stable", "deadline_ms": 5}]}})["m"]
        answer, mark = await smooth(made, broken, one(1), ["scores"], ask_model=other)
        assert mark == "model:small;reason=overload" and answer["scores"].tolist() == [[0.5]]
        assert calls == [("small", None, "stable", "serving_default", ["x"], ("scores",))]
        for _ in range(2):
            with pytest.raises(Refusal, match="queue is full"): await smooth(made, broken, one(1), ask_model=other)

    asyncio.run(story())


def answer_with(steps, feeds, described, outputs=None):
    """What a model that is down answers."""

    async def down(): raise Refusal("UNAVAILABLE", "down")

    fallback = read_fallbacks({"m": {"deadline_ms": 20, "to": steps}})["m"]
    return asyncio.run(smooth(fallback, down, feeds, outputs, described=described))


def test_answers_have_the_shape_and_type_of_the_signature():
    """A constant, a rule over numbers and texts, classes with their names, tensors of a fixed size."""
    rows = {"age": np.array([[30], [70], [50]], "int64"), "plan": np.array([[b"a"], [b"b"], [b"a"]], object)}
    answer, mark = answer_with([{"rule": "0.25 + 0.5 * (age > 60 or plan = 'b')"}], rows, SCORES)
    assert mark == "rule;reason=overload" and answer["scores"].dtype == np.float32 and answer["scores"].tolist() == [[0.25], [0.75], [0.25]]
    both = {"classes": Tensor("c", "DT_STRING", (-1, 2)), "scores": Tensor("s", "DT_FLOAT", (-1, 2))}
    answer, _ = answer_with([{"value": {"classes": ["no", "yes"], "scores": [0.75, 0.25]}}], rows, both)
    assert answer["classes"].shape == (3, 2) and answer["classes"][2].tolist() == [b"no", b"yes"] and answer["scores"][1].tolist() == [0.75, 0.25]
    answer, _ = answer_with([{"value": 7}], rows, {"n": Tensor("n", "DT_INT64", (-1,))})
    assert answer["n"].dtype == np.int64 and answer["n"].tolist() == [7, 7, 7]
    answer, _ = answer_with([{"value": 7}], rows, both, outputs=["scores"])
    assert answer["scores"].shape == (3, 2)
    answer, _ = answer_with([{"value": {"scores": 1}}], rows, {"scores": Tensor("s", "DT_FLOAT", None)})
    assert answer["scores"].shape == (3,)


def test_what_cannot_answer_is_passed_over():
    """A rule without its column, with a missing value, with too few outputs; nobody left."""
    steps = [{"rule": {"scores": "1.0 * nowhere"}}, {"rule": {"scores": "1.0 * age"}}, {"value": {"other": 1}}]
    with pytest.raises(Refusal, match="down"): answer_with(steps, {"age": np.array([1.0, np.nan])}, SCORES)
    answer, mark = answer_with([*steps, {"value": {"scores": 0.5}}], {"age": np.array([1.0, np.nan])}, SCORES)
    assert mark.startswith("value") and answer["scores"].tolist() == [[0.5], [0.5]]
    answer, mark = answer_with(steps, {"age": np.array([1.0, 2.0])}, SCORES)
    assert mark.startswith("rule") and answer["scores"].tolist() == [[1], [2]]


def test_a_rule_reads_serialized_examples():
    """Through Classify and Regress as well."""
    examples = [Example(features={"feature": {"age": {"int64_list": {"value": [n]}}}}).SerializeToString() for n in (30, 70)]
    answer, _ = answer_with([{"rule": "1.0 * (age > 60)"}], {"inputs": np.array(examples, object)}, SCORES)
    assert answer["scores"].tolist() == [[0], [1]]


@pytest.mark.parametrize(("content", "said"), [
    ([], "one object"), ({"m": []}, "no object"), ({"m": {"to": [{"value": 1}]}}, "deadline is missing"), ({"m": {"deadline_ms": 5}}, "nobody answers"),
    ({"m": {"deadline_ms": True, "to": [{"value": 1}]}}, "out of range"), ({"m": {"deadline_ms": 5, "to": [{"valu": 1}]}}, "answers nothing"),
    ({"m": {"deadline_ms": 5, "to": [7]}}, "answers nothing"), ({"m": {"deadline_ms": 5, "to": [{"cache": {"entries": 0}}]}}, "out of range"),
    ({"m": {"deadline_ms": 5, "to": [{"value": None}]}}, "no value"), ({"m": {"deadline_ms": 5, "to": [{"value": [[1], [1, 2]]}]}}, "no value"), ({"m": {"deadline_ms": 5, "to": [{"value": {"a": {"b": 1}}}]}}, "no value"),
    ({"m": {"deadline_ms": 5, "to": [{"rule": 5}]}}, "no text"), ({"m": {"deadline_ms": 5, "to": [{"rule": {"s": "age >"}}]}}, "cannot be read"),
    ({"m": {"deadline_ms": 5, "to": [{"model": ""}]}}, "no name"), ({"m": {"deadline_ms": 5, "to": [{"model": "m"}]}}, "for itself"),
    ({"m": {"deadline_ms": 5, "to": [{"model": "x", "rule": "y"}]}}, "unknown key"), ({"m": {"deadline_ms": 5, "breaker": {"x": 1}, "to": [{"value": 1}]}}, "unknown key"),
])
def test_a_wrong_file_is_said_when_it_is_read(tmp_path, content, said):
    """With the model and the step."""
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(ServingError, match=said): read_fallbacks(tmp_path / "f.json")


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["deadline_ms", "to", "value", "rule", "model", "cache", "a"]), inner, max_size=4),
                           max_leaves=12)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=3), json_values, max_size=2))
def test_any_file_is_read_or_refused(content):
    """Nothing but a ServingError comes of a file."""
    try: assert set(read_fallbacks(content)) == set(content)
    except ServingError as e: assert str(e)


def test_a_file_that_is_none(tmp_path):
    """Missing, or torn."""
    with pytest.raises(ServingError, match="cannot be read"): read_fallbacks(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"m": ')
    with pytest.raises(ServingError, match="cannot be read"): read_fallbacks(tmp_path / "torn.json")


def test_behind_the_real_batcher_every_request_gets_its_own_answer():
    """A model that is sometimes late, computed in batches on a worker thread: real answers belong to their rows, late ones to nobody."""
    import time

    from mlnb.serving.batching import Batcher

    def run(feeds, outputs):
        if (feeds["x"] % 50 == 49).any(): time.sleep(0.15)
        else: time.sleep(0.002)
        return {"scores": feeds["x"] * 2}

    async def many():
        batcher, fallback = Batcher(run), Fallback("m", 0.06, [Step("value", {"scores": -1.0}, 0.06)])

        async def request(number):
            await asyncio.sleep(number * 0.002)
            answer, mark = await smooth(fallback, lambda: batcher.answer(one(number), None, time.monotonic() + 5), one(number), described=SCORES)
            return number, float(answer["scores"][0, 0]), mark

        found = await asyncio.gather(*(request(i) for i in range(200)))
        for number, score, mark in found: assert (score, mark) in ((2 * number, ""), (-1, "value;reason=deadline")), (number, score, mark)
        marks = [mark for _, _, mark in found]
        assert set(marks) == {"", "value;reason=deadline"}
        batcher.close()

    asyncio.run(many())


# ---- what does not fit is said when the model is loaded --------------------------------------------------------------

FLOAT, TEXT = Tensor("x:0", "DT_FLOAT", (-1, 1)), Tensor("t:0", "DT_STRING", (-1,))


@pytest.mark.parametrize(("step", "said"), [
    ({"rule": {"scores": "0.1 * (tenure < 6)"}}, "no input tenure"), ({"value": {"other": 1.0}}, "nothing is said of the output scores"),
    ({"value": {"scores": "a word"}}, "is no DT_FLOAT"), ({"value": {"scores": [1.0, 2.0, 3.0]}}, "does not fit the outputs"),
    ({"model": "nobody"}, "no model 'nobody'"), ({"model": "narrow"}, "has no input x"), ({"model": "other"}, "has no output scores"),
    ({"model": "texts"}, "is DT_STRING, not DT_FLOAT"), ({"model": "wide"}, "wants the input more"), ({"model": "unloaded"}, ""), ({"model": "same"}, ""),
    ({"value": 0.5}, ""), ({"value": [0.5]}, ""), ({"rule": "x / 2"}, ""), ({"cache": {}}, "")])
def test_a_step_that_can_never_answer_is_found(step, said):
    fallback = read_fallbacks({"m": {"deadline_ms": 20, "to": [step, {"cache": {}}]}})["m"]
    others = {"narrow": ({}, SCORES), "other": ({"x": FLOAT}, {"price": FLOAT}), "texts": ({"x": TEXT}, SCORES), "wide": ({"x": FLOAT, "more": FLOAT}, SCORES),
              "unloaded": None, "same": ({"x": FLOAT}, {**SCORES, "besides": FLOAT})}
    found = fallback.problems({"x": FLOAT}, SCORES, others)
    assert set(found) == ({1} if said else set()) and said in found.get(1, "")


def test_nothing_is_said_of_features_inside_examples():
    fallback = read_fallbacks({"m": {"deadline_ms": 20, "to": [{"rule": "tenure / 2"}]}})["m"]
    assert fallback.problems({"examples": TEXT}, SCORES) == {} != fallback.problems({"x": FLOAT}, SCORES)


def test_another_model_gives_the_outputs_of_the_first_and_no_more():
    """A simpler model with further outputs would change the form of the answer: one output is written bare, two are objects."""
    asked = []

    async def ask_model(model, version, label, signature, feeds, outputs):
        asked.append(outputs)
        return {"scores": np.zeros((1, 1), "float32")}

    async def broken(): raise Refusal("INTERNAL", "broken")

    fallback = Fallback("m", 0.05, [Step("model", {"model": "n", "version": None, "label": None}, 0.05)])
    asyncio.run(smooth(fallback, broken, one(1), described=SCORES, ask_model=ask_model))
    assert asked == [("scores",)]


def test_a_number_is_no_text():
    """A rule's number for an output of texts was handed on as it was, and broke the writer of the answer."""
    with pytest.raises(Refusal, match="down"): answer_with([{"value": {"t": 0.5}}], one(1), {"t": TEXT})
