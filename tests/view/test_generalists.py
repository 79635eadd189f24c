"""The report of a generalist: its tasks' interference as heat maps, and what its experts do."""

import json
import re

from allsight.view import write_report


def event(kind, step, values, **others):
    base = {"time": 1_790_000_100.0, "step": step, "rank": 0, "task": None, "text": ""}
    return json.dumps({**base, "kind": kind, "values": values, **others}) + "\n"


def written(fake, *lines):
    file = fake.folder / "events.jsonl"
    file.write_text((file.read_text() if file.exists() else "") + "".join(lines))
    source = write_report(fake.folder).read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", source, flags=re.DOTALL))
    return words, re.findall(r'aria-label="([^"]+)"', source)


def test_interference_is_a_map_of_pairs_and_one_of_the_models_parts(fake_run):
    tasks, parts = ("a", "b", "c"), ("text", "block 0 attention", "block 0 MLP", "own")
    values = {f"whole/{i}<{j}": 1.0 if i == j else -0.25 for i in tasks for j in tasks}
    values |= {
        f"{part}/{i}<{j}": 0.0 if part == "own" else 0.5 for part in parts for i in tasks for j in tasks
    }
    values["text/a<b"] = "nan"
    text, labels = written(fake_run("run"), event("interference", 5, values, text="weights best"))
    assert "Do the tasks help each other?" in text and "weights best" in text
    assert {"Effect of tasks on each other", "Cosine of gradients by part of the model"} <= set(labels)
    for hint in ("a, b: -0.25", "a · b, text: not defined", "b · c, block 0 MLP: 0.50"):
        assert hint in text
    # A part that no two tasks share is left out.
    assert "a · b, own" not in text


def test_experts_have_entropies_by_layer_and_loads_over_steps(fake_run):
    lines = []
    for step in range(0, 200, 2):
        values = {}
        for router in ("0.attn_router", "2.mlp_router"):
            values[f"gate_entropy/{router}"] = 1.0 + step / 1000
            values |= {f"expert_load/{router}/{e}": (0.5, 0.5, 0.0)[e] for e in range(3)}
        lines.append(event("monitor", step, values))
    text, labels = written(fake_run("run"), *lines)
    for words in ("gate entropy: attention", "gate entropy: MLP", "1.10 is even over 3 experts", "block 2"):
        assert words in text
    assert sum(label.startswith("Load of the experts of") for label in labels) == 2
    assert "step 0, expert 2: 0 %" in text


def test_a_run_without_either_has_neither_section(fake_run):
    text, _ = written(fake_run("run"))
    assert "Experts" not in text and "help each other" not in text
