"""Faults in Python: what is changed where, and which tests must notice."""

from __future__ import annotations

from teeth.mutant import fault

REFERENCE = "engine/test_reference.py"

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
        "self-test believes every result",
        "src/llama2q/self_test.py",
        "ok = found == expected",
        "ok = True",
        "test_doctor.py::test_a_failed_self_test_is_told",
    ),
)
