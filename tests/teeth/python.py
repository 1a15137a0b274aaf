"""Faults in Python: what is changed where, and which tests must notice."""

from __future__ import annotations

from teeth.mutant import fault

REFERENCE = "engine/test_reference.py"
SAMPLES = "generate/test_samples.py"
SETTINGS = "generate/test_sampling_settings.py"

PYTHON = (
    fault(
        "missing BOS",
        "src/llama2q/tokenizer.py",
        "return [self.bos_id] * bos + ids",
        "return ids",
        f"{REFERENCE}::test_text_prompt_gets_bos",
    ),
    fault(
        "wrong grid value",
        "src/llama2q/quant/grids.py",
        "25, 38, 53, 69, 89, 113)",
        "25, 38, 54, 69, 89, 113)",
        f"{REFERENCE}::test_quantized_logits_to_the_bit",
    ),
    fault(
        "w1 and w3 swapped in the file",
        "src/llama2q/format/layout.py",
        'sources = (name.replace("w1_w3", "w1"), name.replace("w1_w3", "w3"))',
        'sources = (name.replace("w1_w3", "w3"), name.replace("w1_w3", "w1"))',
        f"{REFERENCE}::test_quantized_file_holds_what_the_checkpoint_rounds_to",
    ),
    fault(
        "journal of another recipe accepted",
        "src/llama2q/format/journal.py",
        'if not lines or lines[0] != {"key": self._key}:',
        'if not lines or "key" not in lines[0]:',
        "format/test_writer.py::test_another_recipe_starts_anew",
        "format/test_writer.py::test_other_sources_start_anew",
    ),
    fault(
        "wo merged along the wrong dimension",
        "src/llama2q/converter/meta_tensors.py",
        '"wo": 1,',
        '"wo": 0,',
        "converter/test_shards.py::test_shards_hold_what_metas_rules_say",
    ),
    fault(
        "the last block of a prompt shared, not copied",
        "src/llama2q/kv_blocks.py",
        "copy_block(self._blocks[n_full], sequence._blocks[n_full])",
        "pass",
        f"{SAMPLES}::test_samples_equal_separate_runs",
    ),
    fault(
        "a shared block freed by its first owner",
        "src/llama2q/kv_blocks.py",
        "self._references[block] += 1",
        "self._references[block] += 0",
        "test_kv_blocks.py::test_fork_shares_full_blocks_and_copies_the_rest",
    ),
    fault(
        "an heir begins after the text of the one before",
        "src/llama2q/generate/request.py",
        "self._sequence.rewind(len(self.prompt.ids))",
        "pass",
        f"{SAMPLES}::test_samples_that_end_at_different_times",
    ),
    fault(
        "samples draw the same numbers",
        "src/llama2q/generate/batch.py",
        "np.array([request.sequence_index for request in requests], np.int32),",
        "np.zeros(len(requests), np.int32),",
        f"{SAMPLES}::test_samples_equal_separate_runs",
    ),
    fault(
        "output left out of the penalties",
        "src/llama2q/generate/logit_edits.py",
        "            self._seen.add(token)\n",
        "            pass\n",
        f"{SETTINGS}::test_edits_apply_to_prompt_and_output",
    ),
    fault(
        "logprobs of edited logits",
        "src/llama2q/generate/request.py",
        "raw = logits if self.params.logprobs is None else logits.copy()",
        "raw = logits",
        f"{SETTINGS}::test_logprobs_are_of_the_models_own_logits",
    ),
    fault(
        "last token's logits off by one",
        "src/llama2q/engine.py",
        "np.arange(end - span.n_rows, end, dtype=np.int32)",
        "np.arange(end - span.n_rows, end, dtype=np.int32) - (len(span.token_ids) > span.n_rows)",
        f"{REFERENCE}::test_text_prompt_gets_bos",
    ),
    fault(
        "loading never refuses",
        "src/llama2q/engine.py",
        "if not plan.can_load:",
        "if plan.total_bytes < 0:",
        "generate/test_engine.py::test_refused_before_anything_is_allocated",
    ),
    fault(
        "MD5 sums not compared",
        "src/llama2q/converter/sources.py",
        "listed.check(md5.hexdigest())",
        "listed.check(listed.md5)",
        "converter/test_convert_checksums.py::test_damage_is_found_by_md5_or_by_crc",
    ),
    fault(
        "rows of q and k left half-split",
        "src/llama2q/converter/hf_tensors.py",
        "interleaved = halves.swapaxes(1, 2).reshape(rows, cols)",
        "interleaved = halves.copy().reshape(rows, cols)",
        "converter/test_hf_checkpoint.py::test_attention_scores_agree_with_half_split_rotation",
    ),
    fault(
        "k un-permuted by the number of query heads",
        "src/llama2q/converter/hf_tensors.py",
        '"wk": config.n_kv_heads}',
        '"wk": config.n_heads}',
        "converter/test_hf_checkpoint.py::test_all_forms_give_the_same_tensors",
    ),
    fault(
        "an adapter's rows of q and k left half-split",
        "src/llama2q/converter/lora.py",
        "return rows if n_heads is None else unpermute(rows, n_heads)",
        "return rows",
        "converter/test_lora.py::test_merge_equals_float64",
    ),
    fault(
        "the rank's root not taken",
        "src/llama2q/converter/lora_config.py",
        "alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank",
        "alpha / rank",
        "converter/test_lora.py::test_scales_and_ranks_by_module",
    ),
    fault(
        "the last term of the product left out",
        "src/llama2q/converter/lora_merge.py",
        "for k in range(1, len(right)):",
        "for k in range(1, len(right) - 1):",
        "converter/test_lora_merge.py::test_written_order",
    ),
    fault(
        "an update of a matrix may be missing",
        "src/llama2q/converter/lora_adapter.py",
        "[m for m in modules if m in meant - updated]",
        "[]",
        "converter/test_lora_adapter.py::test_tensors_that_are_refused",
    ),
    fault(
        "an index may name files elsewhere",
        "src/llama2q/converter/hf_folder.py",
        "or not _PLAIN_NAME.fullmatch(file)",
        "or not file",
        "converter/test_hf_folder.py::test_names_that_leave_the_folder",
    ),
    fault(
        "added tokens become text",
        "src/llama2q/converter/hf_tokenizer.py",
        "kind = _CONTROL if entry.is_control else _USER_DEFINED",
        "kind = _USER_DEFINED",
        "converter/test_hf_tokenizer.py::test_control_tokens",
    ),
    fault(
        "blobs of the hub's cache not compared",
        "src/llama2q/converter/hub_cache.py",
        "if found[name] != digits:",
        "if not found[name]:",
        "converter/test_hf_checkpoint.py::test_the_hubs_cache",
    ),
    fault(
        "self-test believes every result",
        "src/llama2q/self_test.py",
        "ok = found == expected",
        "ok = True",
        "test_doctor.py::test_a_failed_self_test_is_told",
    ),
)
