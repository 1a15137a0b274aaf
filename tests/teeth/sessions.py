"""Faults in the prefix cache and in sessions: what is changed, and which tests must notice."""

from __future__ import annotations

from teeth.mutant import fault

CACHE = "test_prefix_cache.py"
MACHINE = "test_prefix_cache_machine.py"
SESSION = "sessions/test_session.py"
STORE = "sessions/test_store.py"

SESSIONS = (
    fault(
        "a block found by its own tokens, whatever comes before",
        "src/llama2q/prefix_cache.py",
        "hashlib.sha256(before + block)",
        "hashlib.sha256(self._root + block)",
        f"{CACHE}::test_equal_blocks_behind_different_ones_are_not_the_same",
    ),
    fault(
        "another RoPE finds the same blocks",
        "src/llama2q/prefix_cache.py",
        "json.dumps(rope.to_dict(), sort_keys=True))",
        '"")',
        f"{CACHE}::test_root_depends_on_all_that_keys_and_values_do",
    ),
    fault(
        "a block that is written again is still found",
        "src/llama2q/kv_blocks.py",
        "            self._index.forget(block)\n            return True",
        "            return True",
        f"{CACHE}::test_rewind_into_a_published_block_withdraws_it",
        f"{MACHINE}::TestCacheMachine",
    ),
    fault(
        "a beginning evicted before its end",
        "src/llama2q/kv_blocks.py",
        "for block in reversed(blocks):",
        "for block in blocks:",
        f"{CACHE}::test_empty_blocks_first_then_the_longest_unused_then_ends_before_beginnings",
    ),
    fault(
        "a held block evicted",
        "src/llama2q/kv_blocks.py",
        "self._index.wake(block)",
        "pass",
        f"{CACHE}::test_held_blocks_are_not_evicted",
        f"{MACHINE}::TestCacheMachine",
    ),
    fault(
        "shared blocks reserved twice",
        "src/llama2q/kv_blocks.py",
        "needed = count - sum(self._references[block] > 0 for block in found)",
        "needed = count",
        f"{CACHE}::test_shared_blocks_are_not_reserved_twice",
    ),
    fault(
        "an idle session keeps its blocks from others",
        "src/llama2q/kv_blocks.py",
        "if self._drop_parked(owner):",
        "if False:",
        f"{SESSION}::test_sessions_give_way",
    ),
    fault(
        "samples of a prompt publish what is rewound",
        "src/llama2q/generate/request.py",
        "most_public=None if self.params.n == 1 else len(prompt.ids),",
        "most_public=None,",
        f"{SESSION}::test_samples_publish_the_prompt_alone",
    ),
    fault(
        "the logits of a prompt's last token taken for known",
        "src/llama2q/generate/prompt.py",
        "return self.ids[:-1] if",
        "return self.ids if",
        f"{SESSION}::test_a_whole_prompt_in_the_cache_still_gives_logits",
    ),
    fault(
        "a text goes on where another one was",
        "src/llama2q/generate/kept_text.py",
        "min(n_common(held, ids), most),",
        "min(len(held), most),",
        f"{SESSION}::test_rewind",
        f"{SESSION}::test_any_order_of_calls",
    ),
    fault(
        "the logits of another text taken for this one's",
        "src/llama2q/generate/kept_text.py",
        "            if held != tuple(ids):\n                last = None\n",
        "",
        f"{SESSION}::test_logits_after_another_token_are_not_taken",
    ),
    fault(
        "the same draws after a slide",
        "src/llama2q/generate/request.py",
        "return self._sequence.n_tokens + self._n_slid if",
        "return self._sequence.n_tokens if",
        "sessions/test_full_context.py::test_draws_differ_after_a_slide",
    ),
    fault(
        "a receipt that a slide makes false",
        "src/llama2q/generate/request.py",
        "if self._n_slid:",
        "if False:",
        "sessions/test_full_context.py::test_slide_when_full",
    ),
    fault(
        "what a file says is shared with all",
        "src/llama2q/sessions/store.py",
        "begins=(), most_public=0, wait=True",
        "begins=(), wait=True",
        f"{STORE}::test_loaded_blocks_are_shared_with_nobody_but_forks",
    ),
    fault(
        "what was taken back is saved",
        "src/llama2q/sessions/store.py",
        "        part[:, :, n_kept:] = 0\n",
        "",
        f"{STORE}::test_nothing_remains_of_what_was_taken_back",
    ),
    fault(
        "the hash of a saved session not compared",
        "src/llama2q/sessions/store.py",
        "if file.read(64) != digest.digest() + bytes(32):",
        "if not file.read(64):",
        f"{STORE}::test_flipped_bits",
    ),
)
