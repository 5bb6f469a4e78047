"""Faults of stored weights, and of what an artifact says of its tokens."""

from __future__ import annotations

from tests.mutations.fault import Edit, Fault

WIDEN = "tests/convert/test_requantise.py::test_widening_is_exact_for_every_byte_and_scale"
REQUANTISE = "tests/convert/test_requantise.py::test_requantising_keeps_every_byte_near_and_in_its_place"
MXFP4 = "gptoss_convert/mxfp4.py"
CODES = "gptoss_convert/requantise.py"
ARTIFACT = "gptoss_convert/artifact.py"

STORED = (
    Fault(
        "mxfp4_nibbles_swapped",
        "the even weight is read from the high nibble",
        (
            Edit(
                MXFP4,
                "[VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]]",
                "[VALUES[np.arange(256) >> 4], VALUES[np.arange(256) & 15]]",
            ),
        ),
        ("tests/convert/test_mxfp4.py::test_transformers_reads_the_same_bytes_the_same[float32]",),
    ),
    Fault(
        "requantised_nibbles_swapped",
        "int4's even weight is written to the high nibble",
        (
            Edit(
                CODES,
                "_NIBBLES[:, np.arange(256) & 15] | (_NIBBLES[:, np.arange(256) >> 4] << 4)",
                "_NIBBLES[:, np.arange(256) >> 4] | (_NIBBLES[:, np.arange(256) & 15] << 4)",
            ),
        ),
        (REQUANTISE,),
    ),
    Fault(
        "requantised_half_a_step_off",
        "int4's codes are rounded down",
        (
            Edit(
                CODES,
                "np.clip(np.rint(VALUES / STEPS[:, None]), -8, 7)",
                "np.clip(np.floor(VALUES / STEPS[:, None]), -8, 7)",
            ),
        ),
        ("tests/convert/test_requantise.py::test_it_beats_the_search_on_values_and_the_stock_rule",),
    ),
    Fault(
        "widened_one_off",
        "int8's codes are one too low",
        (Edit(CODES, "VALUES[_PAIRS] * 2 + 128", "VALUES[_PAIRS] * 2 + 127"),),
        (WIDEN,),
    ),
    Fault(
        "widened_pairs_swapped",
        "int8's even weight is read from the high nibble",
        (
            Edit(
                CODES,
                "_PAIRS = np.stack([np.arange(256) & 15, np.arange(256) >> 4], -1)",
                "_PAIRS = np.stack([np.arange(256) >> 4, np.arange(256) & 15], -1)",
            ),
        ),
        (WIDEN,),
    ),
    Fault(
        "widened_steps_doubled",
        "int8's scales are twice as large",
        (Edit(CODES, "np.ldexp(np.float32(0.5), scales", "np.ldexp(np.float32(1.0), scales"),),
        (WIDEN,),
    ),
    Fault(
        "quantised_nibbles_swapped",
        "int4's even weight is written to the high nibble",
        (
            Edit(
                "gptoss_convert/quantise.py",
                "unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)",
                "unsigned[..., 1::2] | (unsigned[..., 0::2] << 4)",
            ),
        ),
        ("tests/convert/test_quantise.py::test_the_even_weight_is_in_the_low_nibble",),
    ),
    Fault(
        "cuda_nibbles_swapped",
        "in CUDA's order, the even one of a byte's two rows is in the high nibble",
        (
            Edit(
                "gptoss_convert/layout_cuda.py",
                "(first & 15) | (second << 4), (first >> 4) | (second & 0xF0)",
                "(second & 15) | (first << 4), (second >> 4) | (first & 0xF0)",
            ),
        ),
        ("tests/convert/test_layout_cuda.py::test_the_bytes_are_those_of_genais_builder[128-192]",),
    ),
)

TOKENS = (
    Fault(
        "call_does_not_stop_a_chat",
        "<|call|> does not end a turn: the model invents the tool's output",
        (
            Edit(
                "gptoss_runtime/harmony_tokens.py",
                "STOP_TOKENS = (RETURN, CALL, ENDOFTEXT)",
                "STOP_TOKENS = (RETURN, ENDOFTEXT)",
            ),
        ),
        ("tests/runtime/chat/test_chat.py::test_a_turn_ends_at_harmonys_stop_tokens",),
    ),
    Fault(
        "call_is_no_stop_token_of_an_artifact",
        "the same in genai_config.json, for other programs",
        (Edit(ARTIFACT, "[RETURN, ENDOFTEXT, CALL]", "[RETURN, ENDOFTEXT]"),),
        ("tests/convert/test_genai_config.py::test_harmonys_stop_tokens_by_default[cpu]",),
    ),
    Fault(
        "generation_config_ignored",
        "tokens of a checkpoint's generation_config.json are ignored",
        (Edit(ARTIFACT, "given = _generation_config(checkpoint.path)", "given: dict[str, Any] = {}"),),
        ("tests/convert/test_genai_config.py::test_a_generation_config_takes_precedence",),
    ),
)

FAULTS: tuple[Fault, ...] = (*STORED, *TOKENS)
