"""The whole chain in under a minute: a tiny random target, its answers, a drafter, a text.

python examples/train_tiny.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from dspark.core import SamplingParams
from dspark.data.prompts import prompt_from_row
from dspark.drafters.checkpoint import load_drafter
from dspark.engine import engine, stats
from dspark.regeneration import mixture, regenerate
from dspark.targets.target import load_target
from dspark.training import trainer
from dspark.training.recipe import make_recipe


def make_target(folder: Path) -> None:
    """A Llama of random weights whose tokens are single bytes; weak layers make it predictable."""
    tokens = ["<stop>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<stop>").save_pretrained(folder)
    set_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.04}
    shape |= {"vocab_size": len(tokens), "bos_token_id": None, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)


def main(home: Path) -> None:
    make_target(home / "target")
    target = load_target(home / "target", "float32")
    texts = [f"{verb} {n}" for verb in ("add", "sort", "name") for n in range(50)]
    prompts = [prompt_from_row({"prompt": text}) for text in texts]
    answers, greedy = home / "answers.jsonl", mixture.parse_mixture("0")
    regenerate.run(target, prompts, answers, mixture=greedy, max_new_tokens=48)

    recipe = {"target": str(home / "target"), "out": str(home / "run")}
    recipe |= {"data": {"responses": [str(answers)]}, "optim": {"lr": 5e-3, "warmup_share": 0}}
    recipe["drafter"] = {"block_size": 4, "num_layers": 1, "markov_rank": 32}
    recipe["run"] = {"minutes": None, "steps": 60, "dtype": "float32"}
    trainer.run(make_recipe(recipe), report=print)

    drafter, ids = load_drafter(home / "run" / "drafter", target), [target.encode("sort 77")]
    params = SamplingParams(max_new_tokens=60)
    drafted, plain = (engine.Engine(target, d).generate(ids, params) for d in (drafter, None))
    same, length = drafted[0].output_ids == plain[0].output_ids, stats.accepted_length(drafted)
    print(f"same text as without drafts: {same}, accepted_length {length:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
