"""The comparison with other engines: what it plans, what it makes of figures, and that its measurements measure."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from windlass import EngineConfig, MLCEngine

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from comparison.engines import ENGINES, OURS, ChildError, call_driver  # noqa: E402
from comparison.journal import Journal, Record  # noqa: E402
from comparison.limits import limit_of  # noqa: E402
from comparison.linked import make_pair, untied  # noqa: E402
from comparison.model_files import bytes_tokenizer, fit_tokenizer, make_model, textless_ids  # noqa: E402
from comparison.plan import FAMILIES, KINDS, LIMITS, METRICS, Step, make_plan, select  # noqa: E402
from comparison.report import make_report, print_report, report_as_json, report_as_markdown  # noqa: E402
from comparison.shapes import SHAPES, Shape  # noqa: E402

TINY = replace(
    SHAPES["S"],
    vocab_size=8192,
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)


def record(engine: str, kind: str, figures: dict[str, list[float]], *, number: int = 0, version: str = "1") -> Record:
    return Record(
        round=number,
        engine=engine,
        shape="M",
        kind=kind,
        version=version,
        figures=figures,
        error=None,
        seconds=2.0,
        when="",
        load=0.0,
        others=None,
        stolen=None,
    )


def test_engines_take_turns_and_rounds_alternate() -> None:
    steps = list(make_plan(2, ["a", "b"], ["M"], ["decode", "prefill"]))
    assert [(step.engine, step.kind) for step in steps if step.round == 0] == [
        (LIMITS, LIMITS),
        ("a", "decode"),
        ("b", "decode"),
        ("a", "prefill"),
        ("b", "prefill"),
    ]
    assert [step.engine for step in steps if step.round == 1] == [LIMITS, "b", "a", "b", "a"]


def test_families_cover_every_kind_and_metric() -> None:
    assert select([]) == list(KINDS)
    assert select(FAMILIES) == list(KINDS)
    assert select(["decode"]) == ["decode", "context"]
    assert {metric for kind in KINDS.values() for metric in kind.metrics} == set(METRICS)


def test_a_cut_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    versions = {"a": "1", "b": "1"}
    steps = [Step(0, engine, "M", "decode") for engine in versions]
    journal = Journal(path)
    journal.add(record("a", "decode", {"decode_128": [1.0]}))
    journal.add(replace(record("b", "decode", {}), error="failed"))
    with path.open("a") as file:
        file.write('{"round": 0, "engi')
    again = Journal(path)
    assert again.pending(steps, versions) == steps[1:]
    assert again.pending(steps, {**versions, "a": "2"}) == steps
    assert again.estimate(steps) == 2.0 + KINDS["decode"].seconds
    again.add(record("b", "decode", {"decode_128": [2.0]}))
    assert Journal(path).pending(steps, versions) == []


def test_noisy_measurements_are_repeated_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    noisy = replace(record("a", "decode", {"decode_128": [1.0]}), others=0.5)
    Journal(path).add(noisy)
    quiet = Journal(path, quiet=0.1)
    assert Journal(path).pending([noisy.step], {"a": "1"}) == []
    assert quiet.pending([noisy.step], {"a": "1"}) == [noisy.step]
    quiet.add(replace(noisy, others=0.0))
    assert quiet.current({"a": "1"}) == Journal(path).current({"a": "1"}) == [replace(noisy, others=0.0)]


def test_ratios_and_limits() -> None:
    machine = {"read_1": [25.0], "int8_1": [400.0], "read_N": [40.0], "int8_N": [800.0]}
    records = [
        record(LIMITS, LIMITS, machine),
        *(record(OURS, "decode", {"decode_128": [value]}, number=n) for n, value in enumerate((44.0, 30.0, 40.0))),
        record("llamacpp", "decode", {"decode_128": [10.0, 20.0, 30.0]}),
        record("ort", "decode", {"decode_128": [10.0]}),
        record(OURS, "memory", {"peak_rss": [1000.0]}),
        record("llamacpp", "memory", {"peak_rss": [2000.0]}),
        record("ort", "memory", {"peak_rss": [4000.0]}),
    ]
    report = make_report(records, {"cores": 2}, dict.fromkeys((OURS, "llamacpp", "ort"), "version 1"))
    decode, memory = report.rows["M"]
    assert (decode.best_peer, decode.ratio) == ("llamacpp", 2.0)
    bytes_per_token = 4.5 / 8 * 1235.75e6 + 2 * 16 * 8 * 64 * 2 * 128
    assert decode.of_limit == pytest.approx(40.0 / (40e9 / bytes_per_token), rel=1e-3)
    assert (memory.best_peer, memory.ratio) == ("llamacpp", 0.5)
    assert memory.of_limit == pytest.approx(0.663, rel=1e-2)
    figures = json.loads(json.dumps(report_as_json(report)))["shapes"]["M"]["decode_128"]["engines"][OURS]
    assert figures == {"median": 40.0, "min": 30.0, "max": 44.0, "values": [44.0, 30.0, 40.0]}
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console)
    assert "Beside shape M: memory read by one thread 25, by all 40 GB/s" in console.export_text()
    assert "| decode after 128, tok/s | **40** 30-44 | **20** | **10** | 2.00x | 57.2 | 70% |" in report_as_markdown(
        report
    )


def test_limits_without_a_dot_product_unit() -> None:
    machine = {"read_N": 40.0, "int8_N": 0.0}
    assert limit_of("prefill_512", SHAPES["M"], machine) is None
    assert limit_of("batch_4", SHAPES["M"], machine) is None
    assert limit_of("first_text", SHAPES["M"], machine) is None
    assert limit_of("decode_128", SHAPES["M"], machine) is not None


def test_a_batch_is_limited_by_reading_then_by_multiplying() -> None:
    machine = {"read_N": 40.0, "int8_N": 800.0}
    one, many = (limit_of(f"batch_{n}", SHAPES["M"], machine) for n in (1, 64))
    assert one == pytest.approx(limit_of("decode_48", SHAPES["M"], machine))
    assert many == pytest.approx(800e9 / (2 * 1235.75e6), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_counted_weights_are_those_of_the_tensors(shape: Shape) -> None:
    matrices = [tensor for tensor in shape.tensors().values() if len(tensor) == 2]
    assert sum(rows * columns for rows, columns in matrices) == shape.layer_weights + shape.head_weights


def test_a_larger_tokenizer_is_cut() -> None:
    definition = bytes_tokenizer()
    vocab = definition["model"]["vocab"]
    vocab |= {"th": 256, "he": 257, "the": 258}
    definition["model"]["merges"] = [["t", "h"], "h e", ["th", "e"]]
    fitted = fit_tokenizer(definition, 257 + 256)
    assert fitted["model"]["merges"] == [["t", "h"]]
    ids = {*fitted["model"]["vocab"].values(), *(token["id"] for token in fitted["added_tokens"])}
    assert ids == set(range(513))


def test_tokens_without_text_are_known() -> None:
    definition = bytes_tokenizer()
    definition["model"]["vocab"] |= {"Ã©": 256, "Ġthe": 257, "é<": 258}
    ids = {i: token for token, i in fit_tokenizer(definition, 1024)["model"]["vocab"].items()}
    textless = textless_ids(fit_tokenizer(definition, 1024))
    parts = {ids[i] for i in textless if i in ids}
    assert parts >= {"Ã", "©", "é<"}
    assert len(parts) == 129
    assert not parts & {"Ã©", "Ġthe", "<filler_300>", "a"}
    assert set(range(768, 1024)) <= set(textless)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("benchmark") / "tiny"
    make_model(TINY, directory, tokenizer=None)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_windlass_is_measured(kind: str, model: Path) -> None:
    request = {
        **KINDS[kind].request(),
        "model": str(model),
        "threads": 1,
        "options": {"quantization": "q4f16_1"},
        "length": min(KINDS[kind].length, 64),
        "steps": min(KINDS[kind].steps, 4),
    }
    figures = call_driver(Path(sys.executable), ENGINES[OURS], request, threads=1)
    assert set(figures) == set(KINDS[kind].metrics)
    for name, values in figures.items():
        assert len(values) == KINDS[kind].repeats, name
        assert all(value > 0 for value in values)


def test_a_driver_that_fails_says_why(tmp_path: Path) -> None:
    request = {**KINDS["memory"].request(), "model": str(tmp_path / "none"), "threads": 1, "options": {}}
    with pytest.raises(ChildError, match="none"):
        call_driver(Path(sys.executable), ENGINES[OURS], request, threads=1)


def test_linked_models_agree_as_often_as_they_should(tmp_path: Path) -> None:
    shape = untied(replace(TINY, model_type="llama", hidden_size=256, head_dim=64))
    draft = replace(shape, hidden_size=128, head_dim=32)
    model_path, draft_path, links = make_pair(tmp_path, (0.0, 0.5, 1.0), shapes=(shape, draft))
    again = make_pair(tmp_path, (0.0, 0.5, 1.0), shapes=(shape, draft))
    assert again[:2] == (model_path, draft_path)
    np.testing.assert_array_equal(again[2].draft_successors, links.draft_successors)
    follows = dict(zip(links.cycle.tolist(), links.successors.tolist(), strict=True))
    config = EngineConfig(
        model=str(model_path),
        speculative_mode="small_draft",
        additional_models=[str(draft_path)],
        spec_draft_length=1,
        num_threads=1,
        max_single_sequence_length=256,
        verbose=False,
    )
    accepted = []
    with MLCEngine(engine_config=config) as engine:
        for number in range(3):
            prompt, before = links.prompt(number, 1, 20, 200), engine.metrics()
            answer = engine.completions.create(
                prompt=prompt, max_tokens=200, temperature=0.0, debug_config={"ignore_eos": True}, logprobs=1
            )
            text, last = "", prompt[-1]
            for _ in range(200):
                last = follows[last]
                text += engine.tokenizer.decode([last])
            assert answer.choices[0].text == text
            after = engine.metrics()
            right = after.accepted_draft_tokens_sum - before.accepted_draft_tokens_sum
            accepted.append(right / (after.draft_tokens_sum - before.draft_tokens_sum))
    assert accepted[0] == 0.0
    assert 0.3 < accepted[1] < 0.7
    assert accepted[2] == 1.0
