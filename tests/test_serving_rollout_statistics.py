"""Rollouts by simulation: false alarms while peeking, power against a fixed horizon, users who met a bad version, hard edges."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlnb.errors import ServingError
from mlnb.serving.assignment import assign, check_split, compare_arms, power_of, sample_size
from mlnb.serving.bandits import (
    KINDS,
    Bandit,
    chances,
    choose,
    choose_for,
    learn,
    learn_for,
    new_bandit,
    new_contextual,
    proxy_weights,
    read_bandit,
    simulate_bandit,
)
from mlnb.serving.canary import CanaryPlan, VersionCounts, add_counts, bucket_counts, counted_since, judge_step
from mlnb.serving.interleaving import balanced, preference, probabilistic, seed_of, team_draft, winner
from mlnb.serving.sequential import (
    FEWEST,
    count_latencies,
    event_evidence,
    event_interval,
    latency_evidence,
    mean_evidence,
    mean_interval,
    paired_evidence,
    sample_of,
    share_evidence,
    share_interval,
)
from mlnb.serving.shadow import Answer, Pair, ShadowPlan, compare_pairs, judge_shadow, pair_answers
from mlnb.serving.simulated_traffic import STRATEGIES, Behaviour, rollout_table, simulate_rollout

ALPHA = 0.05
LIMIT = math.log(1 / ALPHA)
BOUNDS = tuple(0.001 * 1.5**i for i in range(20))


# ---- the tests may be looked at any time


def ever(runs, looks, draw, evidence, seed=0):
    """The share of runs in which the evidence ever reached the limit; counters are summed look by look."""
    random, alarms = np.random.default_rng(seed), 0
    for _ in range(runs):
        total = 0
        for look in range(looks):
            total = total + draw(random, look, total)
            if evidence(*total) >= LIMIT:
                alarms += 1
                break
    return alarms / runs


def requests(rate, share, other=None, shared=lambda look: 1.0, batch=200):
    """Counters of a batch: errors and requests of the canary, then of the champion."""

    def draw(random, look, _):
        n = random.binomial(batch, share)
        factor = shared(look)
        errors = random.binomial([n, batch - n], [min(1.0, rate * factor), (rate if other is None else other) * factor])
        return np.array([errors[0], n, errors[1], batch - n])

    return draw


@pytest.mark.parametrize(
    ("draw", "share", "margin"),
    [
        (requests(0.01, 0.05), 0.05, 0.0),
        (requests(0.02, 0.5), 0.5, 0.0),
        (requests(0.4, 0.5), 0.5, 0.0),
        (requests(0.015, 0.05, 0.01), 0.05, 0.005),  # at the edge of what is allowed
        (requests(0.001, 0.05), 0.05, 0.0),
        (requests(0.05, 0.25, shared=lambda look: 1 + 0.9 * math.sin(look / 5)), 0.25, 0.0),  # day and night
        (requests(0.02, 0.1), 0.5, 0.0),  # another split than planned
        (requests(0.02, 0.5), 0.05, 0.0),
    ],
)
def test_equal_versions_are_refused_at_most_alpha_while_peeking(draw, share, margin):
    """Hundreds of A/A canaries, looked at after each batch."""
    assert ever(500, 50, draw, lambda *counts: event_evidence(*counts, share, margin)) <= ALPHA


def test_a_fixed_horizon_test_does_not_survive_peeking():
    """The same look at the same traffic: the check above can fail."""

    def z(errors, n, others, m):
        pooled = (errors + others) / (n + m)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / max(n, 1) + 1 / m)) or 1.0
        return LIMIT if (errors / max(n, 1) - others / m) / spread > 1.645 else 0.0

    assert ever(300, 50, requests(0.02, 0.25), z) > 0.2


def test_a_split_that_follows_the_results_is_no_excuse():
    """A bandit moves the share: still at most alpha."""

    def draw(random, look, total):
        share = 0.5 if look == 0 else 0.9 if total[0] * total[3] < total[2] * total[1] else 0.1
        n = random.binomial(100, share)
        errors = random.binomial([n, 100 - n], 0.1)
        return np.array([errors[0], n, errors[1], 100 - n])

    assert ever(600, 50, draw, lambda *counts: event_evidence(*counts, 0.5)) <= ALPHA


def test_bounded_scores_are_tested_exactly():
    """Scores in [0, 1] with any distribution work like events."""

    def draw(random, _look, _total):
        scores = random.beta(0.5, 0.5, 20), random.beta(0.5, 0.5, 60)
        return np.array([scores[0].sum(), 20, scores[1].sum(), 60])

    assert ever(600, 40, draw, lambda *counts: event_evidence(*counts, 0.25)) <= ALPHA


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scores", [lambda r, n: r.exponential(1, n), lambda r, n: np.exp(r.normal(0, 1, n)), lambda r, n: r.normal(0, 1, n)])
def test_means_of_skewed_scores(share, sign, scores):
    """Asymptotic: from the fewest labels on, also for amounts of money that few users carry."""

    def draw(random, look, _total):
        n = FEWEST if look == 0 else 20
        sides = sign * scores(random, n), sign * scores(random, int(n * (1 - share) / share))
        return np.array([f for side in sides for f in (len(side), side.sum(), (side**2).sum())])

    assert ever(500, 40, draw, lambda *sums: mean_evidence(sample_of(*sums[:3]), sample_of(*sums[3:]))) <= ALPHA


@pytest.mark.parametrize("bounds", [BOUNDS, (0.01, 0.02, 0.03), tuple(1e-5 * 1.8**i for i in range(33))])
@pytest.mark.parametrize("ratio", [1.0, 1.25])
def test_equal_latencies_with_answers_that_never_come(bounds, ratio):
    """Histograms, coarse and fine; 2 % of the answers are NaN."""

    def draw(random, _look, _total):
        def times(n):
            return np.where(random.random(n) < 0.02, math.nan, 0.015 * np.exp(0.5 * random.standard_normal(n)))

        return np.array([count_latencies(times(n), bounds) for n in (25, 75)])

    assert ever(300, 30, draw, lambda new, old: latency_evidence(bounds, new, old, 0.25, ratio).log_e) <= ALPHA


@pytest.mark.parametrize(("champion", "canary", "withdrawn"), [(0.0015, 0.0025, False), (0.0015, 0.05, True), (0.1, 0.13, False), (0.1, 0.2, True)])
def test_a_canary_may_be_a_little_colder_and_not_slow(champion, canary, withdrawn):
    """With a twentieth of the traffic a server of milliseconds takes longer, and nobody minds; of 100 ms the ratio decides."""
    plan = CanaryPlan(latency_ratio=1.5, min_requests=100)
    ended = [simulate_rollout(plan, Behaviour(median_seconds=champion), Behaviour(median_seconds=canary), 40_000, seed=seed) for seed in range(20)]
    assert [one.action == "withdrawn" for one in ended] == 20 * [withdrawn]
    assert not withdrawn or all("latency" in one.reason and one.met < 1000 for one in ended)
    assert withdrawn or sum(one.action == "finished" for one in ended) > 10


@pytest.mark.parametrize("slack", [0.0, 0.003, 0.01])
def test_equal_latencies_with_a_slack(slack):
    def draw(random, _look, _total):
        return np.array([count_latencies(0.015 * np.exp(0.5 * random.standard_normal(n)) + extra, BOUNDS) for n, extra in ((25, slack), (75, 0))])

    assert ever(300, 30, draw, lambda new, old: latency_evidence(BOUNDS, new, old, 0.25, slack_seconds=slack).log_e) <= ALPHA


def tide(look):
    """Day and night: from a tenth to twice."""
    return 1.05 + 0.95 * math.sin(look / 4)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("ratio", [1.0, 1.25])
def test_equal_latencies_that_drift_with_hardly_any_traffic(share, ratio):
    """Both versions are slow at night and quick by day; one of them is hardly ever asked."""

    def draw(random, look, _total):
        n = random.binomial(400, share)
        return np.array([count_latencies(0.015 * tide(look) * np.exp(0.6 * random.standard_normal(m)), BOUNDS) for m in (n, 400 - n)])

    assert ever(200, 40, draw, lambda new, old: latency_evidence(BOUNDS, new, old, share, ratio).log_e) <= ALPHA


@pytest.mark.parametrize("share", [0.01, 0.05, 0.95])
def test_equal_scores_that_drift_with_hardly_any_traffic(share):
    """Scores with bounds exactly, any scores asymptotically: what they are worth goes up and down for both."""

    def bounded(random, look, _total):
        n = random.binomial(400, share)
        return np.array([f for m in (n, 400 - n) for f in (random.beta(0.4 * tide(look), 0.6, m).sum(), m)])

    def money(random, look, _total):
        n = random.binomial(400, share)
        sides = [tide(look) * random.exponential(1, m) for m in (n, 400 - n)]
        return np.array([f for side in sides for f in (len(side), side.sum(), (side**2).sum())])

    assert ever(300, 40, bounded, lambda *counts: event_evidence(*counts, share)) <= ALPHA
    assert ever(300, 40, money, lambda *sums: mean_evidence(sample_of(*sums[:3]), sample_of(*sums[3:]))) <= ALPHA


@pytest.mark.parametrize(("last", "few"), [(0.95, True), (1.0, False)])
def test_a_bad_night_is_no_proof_while_a_control_group_is_kept(last, few):
    """Errors of both versions double after the first step. At 100 % nobody can tell; the reason says what was compared."""
    random, plan, alarms = np.random.default_rng(0), CanaryPlan(steps=(0.5, last), latency_ratio=0, quality_margin=-1), []
    for _ in range(60):
        before, new, old = VersionCounts(4000, random.binomial(4000, 0.02)), VersionCounts(), VersionCounts()
        for _ in range(20):
            n = random.binomial(400, last)
            new, old = (add_counts(a, VersionCounts(m, random.binomial(m, 0.04))) for a, m in ((new, n), (old, 400 - n)))
            decision = judge_step(plan, 1, old if last < 1 else before, new, 1.0, interval=False)
            if decision.action == "abort": break
        alarms += [decision.reason] * (decision.action == "abort")
    assert (len(alarms) <= 3) == few
    assert few or all(reason.endswith("(the champion's figures are of the step before)") for reason in alarms)


def test_pairs_and_shares_while_peeking():
    """McNemar's question and a single share, at their edges."""

    def discordant(random, _look, _total):
        return np.array([*random.multinomial(50, [0.04, 0.03, 0.93])[:2], 50])

    assert ever(500, 40, discordant, lambda *counts: paired_evidence(*counts, 0.01)) <= ALPHA
    assert ever(500, 40, lambda r, *_: np.array([r.binomial(20, 0.1), 20]), lambda *counts: share_evidence(*counts, 0.1)) <= ALPHA

    def outside(events, n):
        low, high = share_interval(events, n, ALPHA)
        return LIMIT if not low <= 0.1 <= high else 0.0

    assert ever(150, 20, lambda r, *_: np.array([r.binomial(20, 0.1), 20]), outside) <= ALPHA


def test_intervals_hold_the_truth_at_all_looks():
    """Differences of rates and of means."""

    def rates(*counts):
        low, high = event_interval(*counts, 0.25)
        return LIMIT if not low <= 0.02 <= high else 0.0

    assert ever(150, 8, requests(0.05, 0.25, 0.03), rates) <= ALPHA

    def draw(random, _look, _total):
        sides = random.normal(1.2, 1, 50), random.normal(1.0, 1, 50)
        return np.array([f for side in sides for f in (len(side), side.sum(), (side**2).sum())])

    def means(*sums):
        low, high = mean_interval(sample_of(*sums[:3]), sample_of(*sums[3:]))
        return LIMIT if not low <= 0.2 <= high else 0.0

    assert ever(500, 40, draw, means) <= ALPHA


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(1, 500), st.integers(0, 50), st.integers(0, 500), st.floats(0.01, 0.99), st.floats(0, 0.2))
def test_evidence_goes_the_right_way(errors, good, others, fine, share, margin):
    """More errors of the canary: more evidence; more of the champion, or more allowed: less."""
    here = event_evidence(errors, errors + good, others, others + fine, share, margin)
    assert math.isfinite(here)
    assert event_evidence(errors + 1, errors + good + 1, others, others + fine, share, margin) >= here - 1e-9
    assert event_evidence(errors, errors + good, others + 1, others + 1 + fine, share, margin) <= here + 1e-9
    assert event_evidence(errors, errors + good, others, others + fine, share, margin + 0.01) <= here + 1e-9


# ---- the canary


PLAN = CanaryPlan(quality_range=(0, 1))


@pytest.mark.slow
def test_a_thousand_equal_canaries(capsys):
    """Whole rollouts with every test in every step, looked at after each batch: withdrawn at most alpha, and nearly all finish."""
    found = [simulate_rollout(PLAN, Behaviour(), Behaviour(), 40_000, seed, batch=1000).action for seed in range(1000)]
    with capsys.disabled(): print(f"\n  1,000 equal canaries: {found.count('withdrawn')} withdrawn, {found.count('finished')} finished")
    assert found.count("withdrawn") <= ALPHA * 1000
    assert found.count("finished") >= 900


BAD = {
    "errors 1 % -> 5 %": Behaviour(error_rate=0.05),
    "p95 latency doubled": Behaviour(median_seconds=0.04),
    "right 90 % -> 75 %": Behaviour(quality=0.75, labelled=1.0),
}


@pytest.mark.parametrize("name", BAD)
def test_planted_bad_versions_are_withdrawn(name, capsys):
    """How many users met it, and the same for one look at a planned sample size (which sees errors only)."""
    champion = Behaviour(labelled=1.0)
    runs = [simulate_rollout(PLAN, champion, BAD[name], 100_000, seed) for seed in range(30)]
    peer = [simulate_rollout(PLAN, champion, BAD[name], 100_000, seed, "fixed") for seed in range(10)]
    caught = [run for run in runs if run.action == "withdrawn"]
    early = [run for run in caught if run.reason.startswith("at 5%")]
    with capsys.disabled():
        print(f"\n  {name}: withdrawn {len(caught)} of {len(runs)}, {len(early)} in the first step, after {np.median([r.requests for r in caught]):,.0f} "
              f"requests of all users; met it {np.median([r.met for r in caught]):.0f} users; fixed horizon {np.median([r.met for r in peer]):.0f} "
              f"({sum(r.action == 'withdrawn' for r in peer)} of {len(peer)} withdrawn)")
    assert len(caught) == 30 and len(early) >= 27
    assert np.median([run.met for run in caught]) < np.median([run.met for run in peer])


def counts(n, errors=0, slow=0, labels=0, right=0):
    return VersionCounts(n, errors, (0.01, 0.1), (n - slow, slow, 0), labels, float(right), float(right))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), *[st.integers(0, 400)] * 4, st.floats(0, 1e6), st.sampled_from([None, (0, 1)]))
def test_any_counters_get_a_decision(step, n, errors, m, labels, seconds, bounds):
    """No counters make it fail; facts are plain JSON; contradictions conclude nothing."""
    canary = counts(n, errors, min(n, labels), labels, labels // 2)
    decision = judge_step(PLAN._replace(quality_range=bounds), step, counts(m, m // 50, 0, labels, labels // 3), canary, seconds)
    assert decision.action in ("advance", "hold", "abort", "finish") and decision.reason
    json.dumps(decision.facts, allow_nan=False)
    if errors > n: assert decision.action == "hold"
    if decision.action in ("advance", "finish"): assert n >= PLAN.min_requests and (decision.action == "finish") == (step == 3)


@pytest.mark.parametrize(
    ("champion", "canary", "seconds", "action", "words"),
    [
        (counts(1000), counts(0), 10, "hold", "300 are missing"),
        (counts(1000), counts(0), 600, "abort", "no request reached the canary in 600 s"),
        (counts(0), counts(0), 9999, "hold", "300 are missing"),
        (counts(0), counts(400), 10, "hold", "300 more requests to the champion"),
        (counts(5700), counts(299), 10, "hold", "1 more requests to the canary are needed, it had 299"),
        (counts(5700), counts(300), 10, "advance", "300 requests held"),
        (counts(5700, 0), counts(300, 1), 10, "advance", "error rate 0.33%"),  # a champion without any error
        (counts(760, 0), counts(40, 5), 10, "abort", "error rate 12.5%"),
        (counts(57), counts(3, 3), 1, "abort", "after 3 requests"),
        (counts(5700, 57), counts(300, 8), 10, "hold", "it looks bad: error rate 2.67%"),
        (counts(5700)._replace(latency_counts=(math.nan, 1, 1)), counts(300), 10, "hold", "no number"),
        (counts(5700), counts(300)._replace(latency_bounds_seconds=(1.0,)), 10, "hold", "3 latency counts for 1 bounds"),
        (counts(5700)._replace(latency_bounds_seconds=(), latency_counts=()), counts(300), 10, "advance", "held"),
    ],
)
def test_hard_cases(champion, canary, seconds, action, words):
    """Little traffic, no traffic, no errors, broken counters."""
    decision = judge_step(PLAN, 0, champion, canary, seconds)
    assert (decision.action, words in decision.reason) == (action, True), decision


def test_different_buckets_are_an_error():
    """Latencies of two kinds of servers cannot be compared."""
    with pytest.raises(ServingError, match="different buckets"):
        judge_step(PLAN, 0, counts(5700), counts(300)._replace(latency_bounds_seconds=(0.02, 0.2)), 1)


def test_labels_that_come_late():
    """The quality is judged when labels are there, and waited for when the plan says so."""
    slow_labels = PLAN._replace(min_labels=100)
    assert judge_step(slow_labels, 0, counts(5700), counts(300, labels=40, right=36), 1).reason.startswith("60 more labels")
    assert judge_step(slow_labels, 0, counts(5700, labels=900, right=810), counts(300, labels=100, right=90), 1).action == "advance"
    assert judge_step(slow_labels, 0, counts(5700, labels=900, right=810), counts(300, labels=100, right=50), 1).action == "abort"


def test_scores_without_bounds():
    """A loss: mean and variance; nothing below fifty labels."""
    plan, random = CanaryPlan(quality_margin=0.1), np.random.default_rng(0)

    def scored(n, labels, mean):
        values = random.normal(mean, 1, labels)
        return VersionCounts(n, 0, (), (), labels, float(values.sum()), float((values**2).sum()))

    assert judge_step(plan, 0, scored(5700, 2000, -1.0), scored(300, 45, -9.0), 1).action == "hold"
    assert judge_step(plan, 0, scored(5700, 2000, -1.0), scored(300, 200, -2.0), 1).action == "abort"
    assert judge_step(plan, 0, scored(5700, 2000, -1.0), scored(300, 200, -0.5), 1).action == "advance"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 5)), min_size=1, max_size=5), min_size=1, max_size=4))
def test_counters_survive_restarts(lives):
    """Whatever a worker counted before each death, as far as it was read, is in the total."""
    total, before, truth = VersionCounts(), VersionCounts(), [0, 0]
    for life in lives:
        n = slow = errors = 0
        for quick, late, wrong in life:
            n, slow, errors = n + quick + late, slow + late, errors + min(wrong, quick)
            reading = VersionCounts(n, errors, (0.1,), (n - slow, slow))
            fell = n < before.requests or errors < before.errors or any(b < a for a, b in zip(before.latency_counts, reading.latency_counts, strict=False))
            truth[0] += n if fell else n - before.requests
            truth[1] += errors if fell else errors - before.errors
            total, before = add_counts(total, counted_since(before, reading)), reading
    assert [total.requests, total.errors] == truth and sum(total.latency_counts) == truth[0]
    assert min(total.latency_counts) >= 0


def test_a_restarted_proxy_that_has_no_latencies_yet_and_one_that_was_reset():
    """Envoy's latencies come half a second later than its counters, and `/reset_counters` leaves them alone."""
    before = VersionCounts(100, 3, (0.1,), (90, 10))
    assert counted_since(before, VersionCounts(140, 5)) == VersionCounts(140, 5)
    assert counted_since(VersionCounts(0, 0, (0.1,), (0, 0)), VersionCounts(2, 0)) == VersionCounts(2, 0)
    assert counted_since(before, VersionCounts(7, 1, (0.1,), (95, 12))) == VersionCounts(7, 1, (0.1,), (5, 2))


@pytest.mark.parametrize(("slow", "action", "words"), [
    (215, "advance", "200 ms where 4.00% may, which is within chance"), (265, "hold", "not proven, but it looks bad: p95 latency"), (900, "abort", "proven, after 5,000 requests")])
def test_what_was_seen_is_told_from_what_is_proven(slow, action, words):
    """More than allowed was seen in all three."""
    champion = VersionCounts(5000, 0, (0.1, 0.2, 0.4), (4800, 0, 200, 0))
    canary = VersionCounts(5000, 0, (0.1, 0.2, 0.4), (5000 - slow, 0, slow, 0))
    decision = judge_step(CanaryPlan(quality_margin=-1), 2, champion, canary, 60)
    assert decision.action == action and words in decision.reason, decision
    assert "would be allowed" not in decision.reason and ("proven, after" in decision.reason) == (action == "abort")


def test_running_sums():
    """Prometheus' buckets are sums of all below."""
    assert bucket_counts((3, 3, 10)) == (3, 0, 7) and bucket_counts(()) == ()


# ---- strategies


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_stops_a_bad_version(strategy, capsys):
    """Printed: how many users met it."""
    runs = [simulate_rollout(PLAN, Behaviour(), Behaviour(error_rate=0.2), 60_000, seed, strategy) for seed in range(10)]
    with capsys.disabled():
        print(f"\n  errors 1 % -> 20 %, {strategy}: {np.median([r.met for r in runs]):.0f} users met it, {np.median([r.requests for r in runs]):,.0f} requests")
    assert all(run.action == "withdrawn" for run in runs)
    assert strategy != "shadow" or all(run.met == run.failures == 0 for run in runs)


@pytest.mark.parametrize("strategy", ["shadow", "bandit", "ab"])
def test_no_strategy_withdraws_good_versions(strategy):
    """At most alpha, with looks all the time."""
    runs = [simulate_rollout(PLAN, Behaviour(), Behaviour(), 6000, seed, strategy, users=1500, batch=300).action for seed in range(100)]
    assert runs.count("withdrawn") <= 5


def test_a_simulation_is_repeatable():
    """The same seed, the same users."""
    one, two = (simulate_rollout(PLAN, Behaviour(), Behaviour(quality=0.8), 5000, 3) for _ in range(2))
    assert one == two and len(rollout_table([one]).splitlines()) == 2


# ---- shadow


def pair(one, other, label=None, **more):
    return Pair(Answer("q", one, label=label, **more), Answer("q", other))


def test_mcnemar_agrees_with_statsmodels():
    """Exact p-value, on planted disagreements."""
    from statsmodels.stats.contingency_tables import mcnemar

    cells = {(0.9, 0.9): 40, (0.9, 0.1): 19, (0.1, 0.9): 7, (0.1, 0.1): 11}
    report = compare_pairs([pair(*values, 1) for values, n in cells.items() for _ in range(n)])
    assert report.labelled.p_value == pytest.approx(mcnemar([[40, 19], [7, 11]], exact=True).pvalue)
    assert (report.labelled.only_champion, report.labelled.only_shadow) == (19, 7)


def test_errors_of_either_side():
    """Who failed alone, who failed with the other, and what is NaN."""
    pairs = [pair(None, 0.1), pair(0.1, None), pair(None, None), pair(0.1, math.inf), pair(0.2, 0.2)]
    total = compare_pairs(pairs).total
    assert (total.champion_errors, total.shadow_errors, total.only_shadow_errors, total.only_champion_errors, total.compared) == (2, 3, 2, 1, 1)


def test_slices_tell_where():
    """A column of the input, with a name that is a number and one that is missing."""
    pairs = [pair(0.4, 0.4 + 0.3 * (i % 2), slice="a" if i % 2 else "") for i in range(100)]
    report = compare_pairs(pairs)
    assert {line.name: line.flips for line in report.slices} == {"a": 1.0, "": 0.0}
    assert report.total.mean_difference == pytest.approx(0.15) and report.difference_interval[0] < 0.15 < report.difference_interval[1]


@pytest.mark.parametrize(("one", "other"), [(0.5, (0.5, 0.5)), ("cat", 0.5), ((0.1, 0.9), (0.1, 0.2, 0.7))])
def test_answers_of_different_forms(one, other):
    """Another head on the model: an error that names the request."""
    with pytest.raises(ServingError, match="request q"):
        compare_pairs([pair(one, other)])


def test_logs_in_any_order():
    """Retries, answers that only one side knows, and a log read twice."""
    left = [Answer(str(i), i / 10) for i in range(10)]
    right = [Answer(str(i), i / 10) for i in (9, 3, 3, 1, 77)]
    pairs, alone = pair_answers(left + left, right)
    assert [p.champion.request_id for p in pairs] == ["1", "3", "9"] and alone == 8
    assert compare_pairs(pairs, unmatched=alone).total.mean_difference == 0.0


def test_a_slow_shadow_is_noticed():
    """Pair by pair, although the champion's own times spread tenfold."""
    random = np.random.default_rng(0)
    times = np.exp(random.normal(-4, 1.2, 200))
    pairs = [Pair(Answer(str(i), 0.5, seconds=t), Answer(str(i), 0.5, seconds=1.5 * t * random.lognormal(0, 0.2))) for i, t in enumerate(times)]
    decision = judge_shadow(ShadowPlan(), compare_pairs(pairs))
    assert decision.action == "abort" and "1.25 times as long" in decision.reason
    assert judge_shadow(ShadowPlan(slower_allowed=1.0), compare_pairs(pairs)).action == "hold"


# ---- A/B


@pytest.mark.parametrize(("base", "effect", "share"), [(0.1, 0.02, 0.5), (0.5, -0.05, 0.5), (0.02, 0.01, 0.2)])
def test_sample_sizes_agree_with_simulation(base, effect, share):
    """A test of the computed size finds the effect as often as it says."""
    from statsmodels.stats.proportion import power_proportions_2indep

    size, random = sample_size(base, effect, share), np.random.default_rng(0)
    new, old = random.binomial(size.treatment, base + effect, 4000), random.binomial(size.control, base, 4000)
    rates = new / size.treatment, old / size.control
    z = (rates[0] - rates[1]) / np.sqrt(rates[0] * (1 - rates[0]) / size.treatment + rates[1] * (1 - rates[1]) / size.control)
    assert (np.sign(effect) * z > 1.96).mean() == pytest.approx(0.8, abs=0.04)
    peer = power_proportions_2indep(effect, base, size.treatment, ratio=size.control / size.treatment).power
    if share == 0.5: assert power_of(base, effect, size.treatment) == pytest.approx(peer, abs=0.01)   # the peer pools variances


def test_sample_sizes_of_means_agree_with_statsmodels():
    """Against the noncentral t."""
    from statsmodels.stats.power import TTestIndPower

    peer = TTestIndPower().solve_power(effect_size=0.15, power=0.8, alpha=0.05, ratio=3)
    assert sample_size(50, 3, 0.25, deviation=20).treatment == pytest.approx(peer, rel=0.01)


USERS = [f"user-{i}" for i in range(30_000)]


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 1, "b": 2, "c": 7}, {str(i): 1 for i in range(10)}])
def test_assignment_is_as_weighted(weights):
    """Chi-squared over users; keys that differ in the last character only."""
    seen = [assign(user, "exp", weights) for user in USERS]
    expected = np.array(list(weights.values())) / sum(weights.values()) * len(USERS)
    assert stats.chisquare([seen.count(name) for name in weights], expected).pvalue > 1e-3
    assert not check_split({name: seen.count(name) for name in weights}, weights).mismatch


def test_experiments_are_independent():
    """A contingency table of two experiments, and of an experiment and the parity of the user's number."""
    first, second = ([assign(user, name, {"a": 0.3, "b": 0.7}) for user in USERS] for name in ("one", "two"))
    odd = [int(user[5:]) % 2 for user in USERS]
    for other in (second, odd):
        table = np.array([[sum(a == x and b == y for a, b in zip(first, other, strict=True)) for y in set(other)] for x in "ab"])
        assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        ({"a": 0.95, "b": 0.05}, {"a": 0.75, "b": 0.25}, 0.2),
        ({"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}, 1 / 3),  # a third version
        ({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 0}, 1 / 3),  # one is withdrawn
        ({"a": 5, "b": 3, "c": 2}, {"a": 50, "b": 30, "c": 20}, 0.0),
    ],
)
def test_weights_move_the_fewest_users(before, after, moved):
    """Exactly the share that had to move, and nobody between versions whose ratio stayed."""
    pairs = [(assign(user, "e", before), assign(user, "e", after)) for user in USERS[:10_000]]
    assert sum(a != b for a, b in pairs) / len(pairs) == pytest.approx(moved, abs=0.015)
    gained = {name for name in after if after[name] / sum(after.values()) > before.get(name, 0) / sum(before.values()) + 1e-9}
    lost = {name for name in before if after.get(name, 0) == 0}
    assert all(a == b or b in gained and (not lost or a in lost) for a, b in pairs)


def test_assignment_never_changes():
    """Written down: users keep their version through releases of mlnb."""
    assert "".join(assign(f"user-{i}", "colour", {"A": 0.5, "B": 0.3, "C": 0.2}) for i in range(20)) == VECTOR
    assert assign("größe", "é", {"a": 1, "b": 1}) == assign("größe", "é", {"b": 1, "a": 1})


VECTOR = "BACBABBABCAABBBBBBAA"


def test_a_wrong_split_is_found_and_a_right_one_is_not():
    """Looked at after every hundred users."""
    weights = {"a": 0.5, "b": 0.5}

    def ever_wrong(random, rate):
        steps = random.binomial(100, rate, 100).cumsum()
        return any(check_split({"a": int(n), "b": 100 * (i + 1) - int(n)}, weights, 0.01).mismatch for i, n in enumerate(steps))

    random = np.random.default_rng(0)
    assert sum(ever_wrong(random, 0.5) for _ in range(100)) <= 4
    assert sum(ever_wrong(random, 0.54) for _ in range(20)) == 20


def test_effects_agree_with_scipy_and_statsmodels():
    """Welch's test and interval; coverage of both intervals on simulated rates."""
    random = np.random.default_rng(0)
    new, old = random.gamma(2, 3, 500), random.gamma(2, 2.8, 700)
    found, peer = compare_arms(new, old), stats.ttest_ind(new, old, equal_var=False)
    assert found.p_value == pytest.approx(peer.pvalue) and found.interval == pytest.approx(tuple(peer.confidence_interval()))
    missed = np.zeros(2)
    for _ in range(200):
        effect = compare_arms(random.random(400) < 0.15, random.random(400) < 0.1)
        missed += [not low <= 0.05 <= high for low, high in (effect.interval, effect.any_time)]
    assert missed[0] <= 20 and missed[1] <= 6


def test_cuped_leaves_the_effect_and_no_false_alarms():
    """Equal arms with history: the one-look test errs as often as it says."""
    random, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        before = random.normal(0, 1, 400)
        values = before + random.normal(0, 0.5, 400)
        found = compare_arms(values[:200], values[200:], new_before=before[:200], old_before=before[200:])
        alarms += found.p_value < 0.05
        assert found.reduced > 0.6
    assert 3 <= alarms <= 30


# ---- interleaving


def lists(mix, first, second, n, chances, seed=0):
    """Winners where each item is clicked with its chance, wherever it stands."""
    random = np.random.default_rng(seed)
    for i in range(n):
        shown = mix(first, second, 4, seed_of(seed, i))
        yield winner(shown, [item for item in shown.items if random.random() < chances(item)])


@pytest.mark.parametrize("mix", [team_draft, probabilistic])
@pytest.mark.parametrize("second", ["abcd", "dcba", "bcda", "wxyz"])
def test_who_clicks_anywhere_prefers_neither(mix, second):
    """Identical or different rankings, random clicks: half of the lists each."""
    found = preference(lists(mix, "abcd", second, 2500, lambda item: 0.3))
    assert stats.binomtest(found.second, found.first + found.second).pvalue > 1e-3
    assert 0.45 < found.share < 0.55


def test_identical_rankings_tie_when_balanced():
    """Every item is as high in both, so nobody wins a list."""
    found = preference(lists(balanced, "abcd", "abcd", 300, lambda item: 0.4))
    assert (found.first, found.second, found.ties) == (0, 0, 300)


@pytest.mark.parametrize("mix", [team_draft, balanced, probabilistic])
def test_the_better_ranking_wins(mix):
    """The relevant item is on top of one of them."""
    found = preference(lists(mix, "abcdefgh", "habcdefg", 800, lambda item: 0.6 if item == "h" else 0.1))
    assert found.share > 0.6 and found.log_e > LIMIT and "challenger is preferred" in found.text()


def test_interleaving_while_peeking():
    """Identical rankings, looked at after every twenty lists."""
    random, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        wins = random.random(600) < 0.5
        alarms += any(preference(wins[:n].astype(int)).log_e >= LIMIT for n in range(20, 601, 60))
    assert alarms <= 10


def test_interleaving_needs_fewer_users_than_an_ab_test(capsys):
    """The same clicks: lists until a preference is proven, against users of an A/B test on clicks at the top item."""
    random, first, second = np.random.default_rng(0), "abcdefgh", "eabcdfgh"

    def clicks(items):
        return [item for place, item in enumerate(items) if random.random() < 0.8**place * (0.5 if item == "e" else 0.1)]

    needed = []
    for run in range(10):
        won = []
        while not won or preference(won).log_e < LIMIT:
            for _ in range(10): won.append(winner(shown := team_draft(first, second, 5, seed_of(run, len(won))), clicks(shown.items)))
        needed.append(len(won))
    rates = [np.mean([bool(clicks(ranking[:5])) for _ in range(4000)]) for ranking in (first, second)]
    users = sample_size(rates[0], rates[1] - rates[0])
    with capsys.disabled(): print(f"\n  interleaving: {np.median(needed):.0f} lists; A/B: {users.treatment + users.control:,} users")
    assert np.median(needed) < users.treatment + users.control


# ---- bandits


CLEAR = {"a": 0.1, "b": 0.2, "c": 0.5}


def regret(kind, rates, runs=3, n=3000, delay=0, **more):
    return np.mean([simulate_bandit(new_bandit(list(rates[0]), kind, 0.0, **more), rates, n, seed, delay)[0][-1] for seed in range(runs)])


def test_regret_against_uniform_and_epsilon_greedy(capsys):
    """Clear differences; rewards at once and late."""
    lost = {kind: regret(kind, [CLEAR]) for kind in KINDS}
    late = regret("thompson", [CLEAR], delay=300)
    with capsys.disabled(): print("\n  regret after 3,000 requests:", {kind: round(float(v)) for kind, v in lost.items()}, f"thompson 300 late {late:.0f}")
    assert max(lost["thompson"], lost["gaussian"], lost["ucb1"]) < lost["epsilon"] < lost["uniform"] / 3
    assert late < lost["uniform"] / 3


def test_a_fading_memory_follows_a_change():
    """The best version becomes the worst."""
    worlds = [CLEAR, {"a": 0.5, "b": 0.2, "c": 0.1}]
    assert regret("thompson", worlds, discount=0.99) < 0.7 * regret("thompson", worlds)


def test_ucb1_does_not_wait_for_rewards():
    """With rewards on their way it asks others too."""
    bandit, random = new_bandit(["a", "b", "c"], "ucb1", 0.0), np.random.default_rng(0)
    asked = []
    for _ in range(30):
        name, bandit = choose(bandit, random)
        asked.append(name)
    assert min(asked.count(name) for name in "abc") == 10


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KINDS), st.integers(2, 9), st.floats(0, 0.1), st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1), st.integers(1, 500)), max_size=20))
def test_weights_are_whole_and_keep_the_floor(kind, arms, floor, rewards):
    """Percentages for a proxy, whatever was learned; and a file gives the same bandit back."""
    bandit = new_bandit([f"v{i}" for i in range(arms)], kind, floor, 0.99)
    for arm, reward, count in rewards: bandit = learn(bandit, f"v{arm % arms}", reward, count)
    weights = proxy_weights(bandit)
    assert sum(weights.values()) == 100 and min(weights.values()) >= math.floor(100 * floor)
    assert min(chances(bandit).values()) >= floor - 1e-12 and sum(chances(bandit).values()) == pytest.approx(1)
    again = read_bandit(json.loads(json.dumps(bandit.as_dict())))
    assert again == bandit and proxy_weights(again) == weights


def test_the_floor_is_served():
    """Also a version without hope gets its share."""
    bandit, random = learn(learn(new_bandit(["a", "b"], floor=0.1), "a", 0.9, 1000), "b", 0.1, 1000), np.random.default_rng(0)
    asked = [choose(bandit, random)[0] for _ in range(3000)]
    assert asked.count("b") / 3000 == pytest.approx(0.1, abs=0.02)


def test_context_beats_no_context():
    """Each version is better for half of the requests: without context there is nothing to learn."""
    random, good = np.random.default_rng(0), {"linucb": 0, "thompson": 0}
    linear, plain = new_contextual(["a", "b"], 2), new_bandit(["a", "b"])
    for _ in range(1500):
        side = float(random.random() < 0.5)
        better = "a" if side else "b"
        name = choose_for(linear, (1.0, side), random)
        linear = learn_for(linear, name, (1.0, side), float(random.random() < (0.6 if name == better else 0.2)))
        other, plain = choose(plain, random)
        plain = learn(plain, other, float(random.random() < (0.6 if other == better else 0.2)))
        good = {"linucb": good["linucb"] + (name == better), "thompson": good["thompson"] + (other == better)}
    assert good["linucb"] > 1300 and 600 < good["thompson"] < 900


def test_rewards_without_bounds():
    """Money: the Gaussian kind finds the higher mean although it spreads more."""
    random, bandit, asked = np.random.default_rng(1), new_bandit(["a", "b"], "gaussian"), []
    for _ in range(1500):
        name, bandit = choose(bandit, random)
        asked.append(name)
        bandit = learn(bandit, name, float(random.normal(10, 1) if name == "a" else random.normal(12, 8)))
    assert isinstance(bandit, Bandit) and asked[-500:].count("b") > 400
