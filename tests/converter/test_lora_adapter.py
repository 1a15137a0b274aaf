"""LoRA adapters that are refused, each with an error that names what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.hf_files import Tensors, as_hub_cache, read_meta, write_safetensors
from converter.lora_files import (
    ALL,
    EMBEDDINGS,
    PREFIX,
    low_rank,
    module_shapes,
    modules_named,
    random_factor,
    write_adapter,
)
from converter.pth_files import SMALL, Make
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.lora import MergedCheckpoint
from llama2q.converter.lora_adapter import LoraAdapter
from llama2q.converter.lora_config import read_lora_config
from llama2q.errors import (
    AdapterError,
    CheckpointNotFoundError,
    NonFiniteWeightError,
    ShardFormatError,
    TensorSetError,
    TruncatedShardError,
    UnreadableFileError,
    UnsafePickleError,
    UnsupportedAdapterError,
)

CONFIG = SMALL.config
Q0 = "model.layers.0.self_attn.q_proj"
Change = Callable[[Tensors], object]


@pytest.fixture
def base(make: Make) -> Path:
    """Write the small model."""
    return make()


def sound() -> Tensors:
    return low_rank(CONFIG, modules_named(CONFIG, ALL))


def refused(base: Path, adapter: Path, error: type[Exception], match: str) -> None:
    """Expect this error on fitting the adapter; it names a file of the adapter or its folder."""
    with (
        MetaCheckpoint.open(base) as checkpoint,
        pytest.raises(error, match=match) as caught,
        MergedCheckpoint.open(checkpoint, adapter),
    ):
        pass
    assert type(caught.value) is error
    assert "adapter" in str(caught.value)


# --- configs ----------------------------------------------------------------------------------

SWITCHED_ON: dict[str, object] = {
    "use_dora": True,
    "use_qalora": True,
    "lora_bias": True,
    "fan_in_fan_out": True,
    "trainable_token_indices": [1, 2],
    "target_parameters": ["mlp.experts"],
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"tensor_parallel": 2},
    "alora_invocation_tokens": [3],
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1e-4},
    "monteclora_config": {"n": 2},
    "velora_config": {"x": 1},
    "use_bdlora": {"nblocks": 2},
    "ensure_weight_tying": True,
    "of_tomorrow": 0.5,
}


@pytest.mark.parametrize("key", SWITCHED_ON)
def test_what_cannot_be_honoured(tmp_path: Path, key: str) -> None:
    adapter = write_adapter(tmp_path / "a", sound(), **{key: SWITCHED_ON[key]})
    with pytest.raises(UnsupportedAdapterError, match=rf"adapter_config\.json has '{key}'"):
        read_lora_config(adapter / "adapter_config.json")
    for off in (None, False, [], {}):
        write_adapter(tmp_path / "a", sound(), **{key: off})
        read_lora_config(adapter / "adapter_config.json")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"peft_type": "IA3"}, UnsupportedAdapterError, "peft_type is 'IA3'; only LORA"),
        ({"peft_type": None}, UnsupportedAdapterError, "peft_type is None"),
        ({"task_type": "SEQ_CLS"}, UnsupportedAdapterError, "task_type is 'SEQ_CLS'"),
        ({"bias": "all"}, UnsupportedAdapterError, "bias is 'all'"),
        ({"bias": "lora_only"}, UnsupportedAdapterError, "bias is 'lora_only'"),
        ({"init_lora_weights": "pissa"}, UnsupportedAdapterError, "path_initial_model"),
        ({"init_lora_weights": "pissa_niter_16"}, UnsupportedAdapterError, "path_initial_model"),
        ({"init_lora_weights": "olora"}, UnsupportedAdapterError, "changed the model beneath"),
        ({"init_lora_weights": "loftq"}, UnsupportedAdapterError, "changed the model beneath"),
        ({"init_lora_weights": "corda"}, UnsupportedAdapterError, "changed the model beneath"),
        ({"init_lora_weights": "lora_ga"}, UnsupportedAdapterError, "changed the model beneath"),
        ({"init_lora_weights": "newest"}, UnsupportedAdapterError, "'newest', which is not known"),
        ({"init_lora_weights": [1]}, UnsupportedAdapterError, r"\[1\], which is not known"),
        ({"init_lora_weights": 7}, UnsupportedAdapterError, "7, which is not known"),
        ({"r": 0}, AdapterError, "r is 0; expected a rank"),
        ({"r": True}, AdapterError, "r is True; expected a rank"),
        ({"r": 4.0}, AdapterError, r"r is 4\.0; expected a rank"),
        ({"lora_alpha": "16"}, AdapterError, "lora_alpha is '16'; expected a number"),
        ({"lora_alpha": False}, AdapterError, "lora_alpha is False"),
        ({"lora_alpha": 1e300}, AdapterError, "lora_alpha is 1e"),
        ({"use_rslora": "yes"}, AdapterError, "use_rslora is 'yes'"),
        ({"rank_pattern": [1]}, AdapterError, "rank_pattern is"),
        ({"rank_pattern": {"q_proj": -1}}, AdapterError, "rank_pattern of 'q_proj' is -1"),
        ({"alpha_pattern": {"q_proj": None}}, AdapterError, "alpha_pattern of 'q_proj' is None"),
        ({"alpha_pattern": {"(a+)+b": 1}}, UnsupportedAdapterError, r"has '\(a\+\)\+b', a regular"),
        ({"alpha_pattern": {".*" * 9: 1}}, UnsupportedAdapterError, "a regular expression"),
        ({"alpha_pattern": {"a" * 400: 1}}, UnsupportedAdapterError, "a regular expression"),
        ({"target_modules": [1]}, AdapterError, r"target_modules is \[1\]"),
        ({"target_modules": {"a": 1}}, AdapterError, "target_modules is"),
        ({"modules_to_save": "lm_head"}, AdapterError, "modules_to_save is 'lm_head'"),
        ({"exclude_modules": [""]}, AdapterError, "exclude_modules is"),
        ({"layers_to_transform": "0"}, AdapterError, "layers_to_transform is"),
        ({"layers_to_transform": 1, "layers_pattern": ["h"]},
         UnsupportedAdapterError, "layers_pattern is"),
        ({"base_model_name_or_path": 7}, AdapterError, "base_model_name_or_path is 7"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    adapter = write_adapter(tmp_path / "a", sound(), **changes)
    with pytest.raises(error, match=match) as caught:
        LoraAdapter.open(adapter)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[]", "holds a list; expected an object"),
        (b"{", "not valid JSON"),
        (b'{"r": 8, "r": 4}', "a key appears twice"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is not a number"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ],
)
def test_configs_that_are_no_configs(tmp_path: Path, content: bytes, match: str) -> None:
    adapter = write_adapter(tmp_path / "a", sound())
    (adapter / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=match):
        LoraAdapter.open(adapter)


def test_a_config_of_few_keys(base: Path, tmp_path: Path) -> None:
    """Old adapters have few keys: the others take PEFT's defaults, rank 8 and alpha 8."""
    adapter = write_adapter(tmp_path / "a", low_rank(CONFIG, modules_named(CONFIG, ["q_proj"]), 8))
    old = {"peft_type": "LORA", "target_modules": ["q_proj"], "enable_lora": None}
    (adapter / "adapter_config.json").write_text(json.dumps(old))
    with MetaCheckpoint.open(base) as model, MergedCheckpoint.open(model, adapter) as merged:
        assert merged.notes == ("LoRA adapter a merged: 2 matrices updated (rank 8, scale 1)",)
        assert merged.name == f"{model.name}-a"
        assert (merged.folder, merged.config, merged.dtype) == (model.folder, model.config, "bf16")


# --- tensors ----------------------------------------------------------------------------------


def rename(old: str, new: str) -> Change:
    return lambda t: t.update({new: t.pop(old)})


def put(name: str, *shape: int, dtype: str = "f4") -> Change:
    return lambda t: t.update({name: np.zeros(shape, dtype)})


A, B = (f"{PREFIX}{Q0}.lora_{letter}.weight" for letter in "AB")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: t.pop(A), AdapterError, r"has of model\.layers\.0\.self_attn\.q_proj: .*lora_B"),
        (lambda t: t.pop(B), AdapterError, r"has of model\.layers\.0\.self_attn\.q_proj: .*lora_A"),
        (lambda t: [t.pop(A), t.pop(B)], AdapterError, f"lacks an update of {re.escape(Q0)}"),
        (put(A, 4, 17), AdapterError, r"has the shape \(4, 17\); this model .* \(4, 16\)"),
        (put(B, 17, 4), AdapterError, r"has the shape \(17, 4\); this model .* \(16, 4\)"),
        (put(A, 5, 16), AdapterError, r"has the shape \(5, 16\); this model .* \(4, 16\)"),
        (put(A, 64), AdapterError, r"has the shape \(64,\)"),
        (put(A, 4, 16, dtype="i4"), AdapterError, "has the dtype i32; expected f32, f16, bf16"),
        (put(A, 4, 16, dtype="f8"), AdapterError, "has the dtype f64"),
        (rename(A, A.replace("layers.0", "layers.7")), AdapterError,
         r"belongs to model\.layers\.7\.self_attn\.q_proj, which this model of 2 layers does not "
         r"have: the adapter was trained on meta-llama"),
        (rename(A, A.replace("self_attn.q_proj", "self_attn.qkv_proj")), AdapterError, "qkv_proj"),
        (put(f"{PREFIX}score.weight", 2, 16), AdapterError, "belongs to score, which"),
        (put(A.replace(".weight", ".default.weight"), 4, 16), AdapterError, "is there twice"),
        (put(A.replace(".weight", ".other.weight"), 4, 16), AdapterError, "belongs to .*lora_A"),
        (put("lora_A.weight", 4, 16), AdapterError, "is no tensor of a LoRA adapter"),
        (put(f"{PREFIX}{Q0}.lora_C", 4, 16), AdapterError, "is no tensor of a LoRA adapter"),
        (put(f"{PREFIX}{Q0}.lora_magnitude_vector", 16), UnsupportedAdapterError, "DoRA"),
        (put(f"{PREFIX}{Q0}.lora_magnitude_vector.default.weight", 16),
         UnsupportedAdapterError, "DoRA"),
        (put(f"{PREFIX}{Q0}.lora_B.bias", 16), UnsupportedAdapterError, "holds a bias"),
        (put(f"{PREFIX}{EMBEDDINGS}.token_adapter.trainable_tokens_delta", 2, 16),
         UnsupportedAdapterError, "single rows"),
        (put(f"{PREFIX}model.norm.weight", 16), AdapterError, "which modules_to_save .* not name"),
        (put(f"{PREFIX}lm_head.base_layer.weight", 4096, 16), AdapterError, "without the update"),
        (put(f"{PREFIX}lm_head.weight", 4099, 16), AdapterError,
         r"\(4099, 16\).* \(4096, 16\); if it was trained with more tokens, merge it with PEFT"),
        (lambda t: t.update(low_rank(CONFIG, ["lm_head"])), AdapterError,
         "updates lm_head, which target_modules .* does not mean"),
        (lambda t: [put(f"{PREFIX}model.norm.lora_{x}.weight", 4, 4)(t) for x in "AB"],
         AdapterError, "updates model.norm, which is no matrix"),
        (put(f"{PREFIX}{EMBEDDINGS}.lora_A.weight", 4, 16), AdapterError, "lora_embedding_A"),
        (put("é", 1), TensorSetError, "printable ASCII"),
        (lambda t: t.clear(), AdapterError, "holds no tensors"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(
    base: Path, tmp_path: Path, change: Change, error: type[Exception], match: str
) -> None:
    tensors = sound()
    change(tensors)
    folder = write_adapter(tmp_path / "a", sound())
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    refused(base, folder, error, match)


def test_what_modules_to_save_names_is_there(base: Path, tmp_path: Path) -> None:
    names = {"modules_to_save": ["embed_tokens", "lm_head"]}
    refused(base, write_adapter(tmp_path / "none", sound(), **names), AdapterError,
            r"lacks model\.embed_tokens, lm_head, which modules_to_save")  # fmt: skip
    tensors = sound()
    for module in (EMBEDDINGS, "lm_head"):
        shape = module_shapes(CONFIG)[module]
        tensors[f"{PREFIX}{module}.weight"] = random_factor(np.random.default_rng(0), *shape)
    tensors |= low_rank(CONFIG, ["lm_head"])
    refused(base, write_adapter(tmp_path / "both", tensors, **names), AdapterError,
            r"has of lm_head: .*; expected lora_A and lora_B")  # fmt: skip


def test_ranks_of_the_config(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", sound(), rank_pattern={"layers.1.mlp.up_proj": 8})
    refused(base, adapter, AdapterError, r"layers\.1\.mlp\.up_proj.*\(4, 16\); .* \(8, 16\)")


def test_excluded_modules(base: Path, tmp_path: Path) -> None:
    modules = [m for m in modules_named(CONFIG, ALL) if m != Q0]
    tensors = low_rank(CONFIG, modules)
    for excluded in ([Q0], ["layers.0.self_attn.q_proj"], r"model\.layers\.0\..*q_proj"):
        adapter = write_adapter(tmp_path / "a", tensors, exclude_modules=excluded)
        with MetaCheckpoint.open(base) as model, MergedCheckpoint.open(model, adapter) as merged:
            assert "13 matrices updated" in merged.notes[0]
    adapter = write_adapter(tmp_path / "a", sound(), exclude_modules=[Q0])
    refused(base, adapter, AdapterError, f"updates {re.escape(Q0)}, which target_modules")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(base: Path, tmp_path: Path, value: float) -> None:
    tensors = sound()
    tensors[B][3, 2] = value
    adapter = write_adapter(tmp_path / "a", tensors)
    with MetaCheckpoint.open(base) as model, MergedCheckpoint.open(model, adapter) as merged:
        with pytest.raises(
            NonFiniteWeightError, match=rf"q_proj\.lora_B\.weight: element \(3, 2\) is {value}"
        ):
            merged.read("layers.0.attention.wq.weight")
        merged.read("layers.0.attention.wk.weight")


# --- folders and files ------------------------------------------------------------------------


def test_folders_that_are_refused(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"x")
    refused(base, tmp_path / "adapter-absent", CheckpointNotFoundError, "is no folder; give the")
    refused(base, file, CheckpointNotFoundError, "is a file; give the folder of a LoRA adapter")
    refused(base, tmp_path, CheckpointNotFoundError, "holds no LoRA adapter")
    write_adapter(tmp_path / "checkpoint-100", sound())
    refused(base, tmp_path, CheckpointNotFoundError, r"try --lora .*checkpoint-100")
    weights = tmp_path / "checkpoint-100" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    refused(base, weights.parent, TruncatedShardError, "truncated")
    weights.write_bytes(b"PK\x03\x04" + content)
    refused(base, weights.parent, ShardFormatError, "zip archive")
    weights.unlink()
    refused(
        base, weights.parent, CheckpointNotFoundError, r"neither adapter_model\.safetensors nor"
    )
    weights.mkdir()
    refused(base, weights.parent, UnreadableFileError, r"adapter_model\.safetensors")


def test_a_pickle_that_asks_for_more(base: Path, tmp_path: Path) -> None:
    import zipfile

    adapter = write_adapter(tmp_path / "a", sound(), "bin")
    with zipfile.ZipFile(adapter / "adapter_model.bin", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02cos\nsystem\nX\x04\0\0\0trueR.")
    refused(base, adapter, UnsafePickleError, "os.system")


def test_safetensors_win(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", sound())
    (adapter / "adapter_model.bin").write_bytes(b"not read")
    with MetaCheckpoint.open(base) as model, MergedCheckpoint.open(model, adapter) as merged:
        names = [path.name for path in merged.sources]
    assert names[-2:] == ["adapter_model.safetensors", "adapter_config.json"]
    assert len(names) == 5


def test_the_hubs_cache(base: Path, tmp_path: Path) -> None:
    snapshot = as_hub_cache(write_adapter(tmp_path / "a", sound()), tmp_path / "hub", "org/Tales")
    for folder in (snapshot, snapshot.parent.parent):
        with MetaCheckpoint.open(base) as model, MergedCheckpoint.open(model, folder) as merged:
            assert merged.name == f"{model.name}-Tales"
            tensors, _ = read_meta(base)
            name = "norm.weight"
            np.testing.assert_array_equal(merged.read(name), tensors[name])


def test_names_match_as_peft_matches_them(tmp_path: Path) -> None:
    """Against PEFT's own expressions, written out with `re`."""
    keys = (
        "q_proj", "proj", "^q_proj", ".*down_proj", "layers.1.self_attn.q_proj",
        r"^model\.layers\.0\..*", r"self_attn\.(k|v)_proj", "model.layers.[0-9]+.mlp.up_proj$",
    )  # fmt: skip
    for key in keys:
        config = write_adapter(tmp_path / "a", sound(), alpha_pattern={key: 40})
        found = read_lora_config(config / "adapter_config.json")
        for module in module_shapes(CONFIG):
            matches = re.match(rf"(.*\.)?({key})$", module) is not None
            assert found.scale_of(module) == (10 if matches else 2), (key, module)
