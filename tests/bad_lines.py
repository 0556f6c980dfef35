"""Command lines that no run could use, one verb after another; {x} is a path of `places`."""

from __future__ import annotations

import json
from pathlib import Path

MODELS = """
--dtype float8
--dtype BFLOAT16
--weights int4
--threads 0
--threads two
--target {nowhere}
--target {empty}
--target {broken}
--target 'no such: model'
"""
DRAFTERS = """
--drafter nobody
--drafter {nowhere}
--drafter {empty}
--drafter {weightless}
--drafter {broken}
"""
LINES = f"""
fech
fetch nobody
fetch a b
doctor now
doctor --jsn
generate
generate ''
generate '  '
generate -
generate hi --temperature -1
generate hi --temperature nan
generate hi --temperature inf
generate hi --temperature 101
generate hi --temperature warm
generate hi --top-p 0
generate hi --top-p 1.5
generate hi --top-p nan
generate hi --top-k -1
generate hi --seed -1
generate hi --seed 9223372036854775808
generate hi --max-new-tokens 0
generate hi --policy fast
generate hi --policy fixed:0
generate hi --policy fixed:99
generate hi --policy fixed:-1
generate hi --policy fixed:3 --drafter none
generate hi --policy causal --drafter none
generate hi --policy threshold:2
generate hi --policy threshold:nan
generate hi --policy ''
{MODELS.strip().replace("--", "generate hi --")}
{DRAFTERS.strip().replace("--", "generate hi --")}
serve --port 70000
serve --port -1
serve --timeout 0
serve --timeout nan
serve --grace -1
serve --grace inf
serve --max-len 1
serve --max-queue 0
serve --max-body 0
serve --slots 0
serve --drift-limit nan
serve --drift-limit 2
serve --drift-window 5
serve --api-key-file {{nowhere}}
serve --api-key-file {{blank}}
serve --policy fixed:99
serve --print-command
serve --nodes 2
serve --dtype float8
serve --target {{nowhere}}
serve --drafter nobody
regenerate
regenerate --prompts {{rows}}
regenerate --prompts {{nowhere}} --out {{new}}
regenerate --prompts {{folder}} --out {{new}}
regenerate --prompts {{rows}} --out {{new}} --temperatures hot
regenerate --prompts {{rows}} --out {{new}} --temperatures 0:nan
regenerate --prompts {{rows}} --out {{new}} --suffix-share nan
regenerate --prompts {{rows}} --out {{new}} --suffix-share 2
regenerate --prompts {{rows}} --out {{new}} --max-new-tokens 0
regenerate --prompts {{rows}} --out {{new}} --slots 0
regenerate --prompts {{rows}} --out {{new}} --dtype float8
regenerate --prompts {{rows}} --out {{new}} --target {{nowhere}}
regenerate --prompts {{bad_rows}} --out {{new}}
train
train --config {{nowhere}}
train --config {{bad_toml}}
train --config {{recipe}} --set nothing
train --config {{recipe}} --set optim.lr=nan
train --config {{recipe}} --set target={{nowhere}}
train --config {{recipe}} --set 'data.responses=["{{nowhere}}"]'
train --config {{recipe}} --set 'data.responses=["{{folder}}"]'
train --config {{recipe}} --profile-steps 0
store --config {{recipe}}
store --config {{recipe}} --out {{new}} --set target={{nowhere}}
store --config {{recipe}} --out {{new}} --set 'data.responses=["{{nowhere}}"]'
compare
compare {{nowhere}}
compare {{folder}}
profile --users 0
profile --context 0
profile --repeats 0
profile --drafter none
profile --json {{folder}}
profile --json {{same}} --plot {{same}}
audit --drafter none
audit --limit 0
audit --samples 0
audit --max-new-tokens 1
audit --policy fast
audit --data {{nowhere}}
audit --json {{folder}}
audit --seed -1
bench
bench head --drafter none
bench head --rounds 2
bench head --data {{nowhere}}
bench floor --prompt ''
bench floor --steps 3
bench kernels --rows 0
bench kernels --rows one
bench kernels --rows ,
bench kernels --json {{below_a_file}}
bench load --users 0
bench load --users 1.5
bench load --users '' --rates ''
bench load --rates nan
bench load --policies fast
bench load --policies ,
bench load --against mtp
bench load --against none=off
bench load --against mtp=fast
bench load --seconds nan
bench load --slice nan
bench load --temperature -1
bench peers --policy off --policy off
bench peers --limit 1
bench peers --gguf {{nowhere}}
bench peers --policy fast
bench peers --drafter =
bench serve --users 0
bench serve --seconds 0
bench serve --max-new-tokens 1
bench serve --policy fast
bench weights
bench weights --data {{nowhere}}
bench weights --data {{rows}} --policy causal
bench weights --data {{rows}} --limit 0
bench nothing
confidence
confidence --data {{nowhere}}
confidence --data {{rows}} --temperature 0
confidence --data {{rows}} --temperature nan
confidence --data {{rows}} --drafter none
confidence --data {{rows}} --only {{nowhere}}
calibrate
calibrate --data {{nowhere}}
calibrate --data {{rows}} --check-share 0
calibrate --data {{rows}} --check-share nan
calibrate --data {{rows}} --temperature -0.5
calibrate --data {{rows}} --exclude {{nowhere}}
calibrate --data {{rows}} --rounds 0
eval
eval --data {{nowhere}}
eval --data {{folder}}
eval --data {{rows}} --temperature -1
eval --data {{rows}} --temperature 0 --temperature nan
eval --data {{rows}} --threshold 2
eval --data {{rows}} --threshold nan
eval --data {{rows}} --policy fast
eval --data {{rows}} --drafter none
eval --data {{rows}} --drafter a={{nowhere}}
eval --data {{rows}} --json {{same}} --trace {{same}}
eval --data {{rows}} --top-p 0
report {{nowhere}}
report --temperature nan
report --out {{rows}}
demo --compare vllm
demo --drafter none
demo --seconds nan
demo --seconds 0
demo --limit 0
demo --compare transformers --temperature 1
demo --json {{folder}}
demo --plot {{below_a_file}}
""".replace("{{", "{").replace("}}", "}")

# These look at kernels or another program's code, which brings torch along, but load no model.
WITH_TORCH = """
bench kernels --levels avx9000
bench kernels --dtypes float8
bench peers --levels avx9000
bench peers --llama-server nowhere
train --config {recipe} --set drafter.kind=medusa
train --config {recipe} --set drafter.block_size=0
"""


def places(folder: Path) -> dict[str, str]:
    """Files and folders that the lines name, made below a folder."""
    found = {name: folder / name for name in ("folder", "empty", "broken", "weightless")}
    for path in found.values():
        path.mkdir()
    (found["broken"] / "config.json").write_text("{")
    (found["weightless"] / "config.json").write_text(json.dumps({"block_size": 7}))
    files = {
        "rows": '{"prompt": "hi"}\n',
        "bad_rows": '{"nothing": 1}\n',
        "blank": "# no key\n",
        "bad_toml": "x = \n",
        "recipe": 'out = "runs/x"\ntarget = "org/model"\n[data]\nresponses = ["{rows}"]\n',
    }
    for name, text in files.items():
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text(text.replace("{rows}", str(folder / "rows.jsonl")))
    found["nowhere"] = folder / "nowhere" / "at all.jsonl"
    found["below_a_file"] = found["rows"] / "x.json"
    found["same"] = folder / "same.json"
    found["new"] = folder / "new.jsonl"
    return {name: str(path) for name, path in found.items()}
