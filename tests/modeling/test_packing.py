import copy
import random

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    CamembertConfig,
    ConvBertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

from hfssl.modeling import packing, packing_checks
from hfssl.modeling.packing import pack, packed_inputs, position_limit, recommended_attention
from hfssl.modeling.packing_checks import check_packing


TOKENS = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = TOKENS | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
ROBERTA = SMALL | {"pad_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 130}
LLAMA = SMALL | {"num_key_value_heads": 2}

ENCODERS = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**ROBERTA),
    "xlm-roberta": XLMRobertaConfig(**ROBERTA),
    "camembert": CamembertConfig(**ROBERTA),
    "distilbert": DistilBertConfig(**TOKENS, dim=32, n_layers=3, n_heads=4, hidden_dim=64),
    "electra": ElectraConfig(**SMALL, embedding_size=16),
    "albert": AlbertConfig(**SMALL, embedding_size=16),
    "mpnet": MPNetConfig(**ROBERTA),
    # documents of 31 and 20 tokens, of which the local layers see 4 on each side
    "modernbert": ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2, local_attention=8),
}
DECODERS = {
    "gpt2": GPT2Config(**TOKENS, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "llama": LlamaConfig(**LLAMA),
    # one window for all layers, without `layer_types`
    "mistral": MistralConfig(**LLAMA, sliding_window=8),
    "qwen2": Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=8, max_window_layers=1),
}
LENGTHS = [5, 31, 1, 20]
CASES = [
    pytest.param(config, attention, causal, id=f"{name}-{attention}")
    for causal, configs in ((False, ENCODERS), (True, DECODERS))
    for name, config in configs.items()
    for attention in ("eager", "sdpa")
    if (name, attention) != ("mpnet", "sdpa")  # there is no such thing
]


def build(config, attention="sdpa", causal=False):
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    return auto.from_config(copy.deepcopy(config), attn_implementation=attention).eval()


def documents_and_rows(padding=7):
    """Documents, two rows that hold them in different orders, and the rows' `sequence_ids`."""
    documents = [torch.randint(3, 99, (length,)) for length in LENGTHS]
    input_ids = torch.zeros(2, sum(LENGTHS) + padding, dtype=torch.long)
    sequence_ids = torch.zeros_like(input_ids)
    for row, order in enumerate(([0, 1, 2, 3], [3, 2, 1, 0])):
        end = sum(LENGTHS)
        input_ids[row, :end] = torch.cat([documents[i] for i in order])
        sequence_ids[row, :end] = torch.cat([torch.full((LENGTHS[i],), n) for n, i in enumerate(order, 1)])
    return documents, input_ids, sequence_ids


def unpack(output):
    """The documents of both rows of `documents_and_rows`, in the order of the documents."""
    first = output[0, : sum(LENGTHS)].split(LENGTHS)
    second = output[1, : sum(LENGTHS)].split(LENGTHS[::-1])
    return [*first, *second[::-1]]


@pytest.mark.parametrize(("config", "attention", "causal"), CASES)
def test_a_packed_document_equals_the_document_alone(config, attention, causal):
    model = build(config, attention, causal)
    documents, input_ids, sequence_ids = documents_and_rows()
    with torch.no_grad():
        hidden = model.base_model(input_ids, **packed_inputs(model, sequence_ids, causal)).last_hidden_state
        alone = [model.base_model(document[None]).last_hidden_state[0] for document in documents]
    assert hidden.isfinite().all()
    for packed, expected in zip(unpack(hidden), alone * 2, strict=True):
        torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "gpt2", "llama"])
def test_gradients_equal_those_of_the_documents_alone(name, attention):
    causal = name in DECODERS
    model = build((ENCODERS | DECODERS)[name], attention, causal)
    documents, input_ids, sequence_ids = documents_and_rows()
    weight = torch.randn(99)

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    logits = model(input_ids, **packed_inputs(model, sequence_ids, causal)).logits
    packed = gradients((logits * (sequence_ids > 0)[..., None] * weight).sum())
    alone = gradients(2 * sum((model(document[None]).logits * weight).sum() for document in documents))
    assert len(packed) == len(alone) > 10
    for a, b in zip(packed, alone, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().clamp(min=1).item())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_rows_of_nothing_but_padding_stay_finite(name, attention):
    model = build(ENCODERS[name], attention).train()
    sequence_ids = torch.tensor([[0] * 12, [1] * 4 + [0] * 8])
    output = model(torch.randint(3, 99, (2, 12)), **packed_inputs(model, sequence_ids)).logits
    output[sequence_ids > 0].sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_mask_of_eager_attention_takes_the_type_of_the_scores():
    sequence_ids = torch.tensor([[1, 1, 2, 0]])
    model = build(ENCODERS["bert"], "eager")
    assert packed_inputs(model, sequence_ids)["attention_mask"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_inputs(model, sequence_ids)["attention_mask"].dtype == torch.bfloat16
    mask = packed_inputs(model.bfloat16(), sequence_ids)["attention_mask"]
    assert mask.dtype == torch.bfloat16
    assert mask.isfinite().all()
    assert mask[0, 0].eq(0).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_documents_are_isolated_under_autocast(name, attention):
    model = build(ENCODERS[name], attention)
    _, input_ids, sequence_ids = documents_and_rows()
    kept = sequence_ids == 2
    others = torch.where(kept, input_ids, torch.randint(3, 99, input_ids.shape))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        arguments = packed_inputs(model, sequence_ids)
        before, after = (model(ids, **arguments).logits for ids in (input_ids, others))
    assert torch.equal(before[kept], after[kept])
    assert not torch.equal(before[~kept], after[~kept])


@pytest.mark.parametrize(("name", "offset"), [("bert", 0), ("roberta", 2), ("mpnet", 2), ("modernbert", 0)])
def test_positions_restart_in_each_document(name, offset):
    model = build(ENCODERS[name], "eager")
    sequence_ids = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    positions = packed_inputs(model, sequence_ids)["position_ids"] - offset
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_row_may_be_longer_than_the_position_table():
    model = build(BertConfig(**SMALL, max_position_embeddings=40))
    documents, input_ids, sequence_ids = documents_and_rows(padding=60)
    with torch.no_grad():
        output = model(input_ids, **packed_inputs(model, sequence_ids)).logits
        for packed, document in zip(unpack(output), documents * 2, strict=True):
            torch.testing.assert_close(packed, model(document[None]).logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("bert", 512), ("roberta", 128), ("mpnet", 128), ("gpt2", 128), ("modernbert", None), ("llama", None)],
)
def test_position_limit(name, limit):
    assert position_limit(build((ENCODERS | DECODERS)[name], "eager", name in DECODERS)) == limit


def test_flash_attention_gets_the_segments_of_the_flattened_batch():
    # runs on GPUs only: what is checked here is what it would be given
    model = build(ENCODERS["roberta"])
    model.config._attn_implementation = "flash_attention_2"
    arguments = packed_inputs(model, torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1]]))
    assert arguments["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 8, 9, 12, 18]
    assert arguments["cu_seq_lens_q"].dtype == torch.int32
    assert arguments["cu_seq_lens_k"] is arguments["cu_seq_lens_q"]
    assert arguments["max_length_q"] == arguments["max_length_k"] == 6
    assert "attention_mask" not in arguments
    with pytest.raises(ValueError, match="runs on GPUs only, and the model is on cpu"):
        check_packing(model)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (False, 3), (True, None), (True, 3)])
def test_the_block_mask_of_flex_attention_is_the_boolean_mask(causal, window):
    from torch.nn.attention.flex_attention import create_mask

    _, _, sequence_ids = documents_and_rows()
    block_mask = packing._block_mask(sequence_ids, causal, window)
    length = sequence_ids.shape[1]
    dense = create_mask(block_mask.mask_mod, 2, 1, length, length, device="cpu")
    assert torch.equal(dense, packing._boolean_mask(sequence_ids, causal, window))


@pytest.mark.slow  # compiles a kernel
@pytest.mark.parametrize("name", ["bert", "modernbert", "llama"])
def test_flex_attention_keeps_documents_apart(name):
    check_packing(build((ENCODERS | DECODERS)[name], "flex_attention", name in DECODERS), name in DECODERS, 64)


def test_other_attention_implementations_are_refused():
    model = build(ENCODERS["bert"])
    model.config._attn_implementation = "paged|sdpa"
    with pytest.raises(ValueError, match=r"no mask for the attention implementation 'paged\|sdpa'"):
        packed_inputs(model, torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize(("config", "attention", "causal"), CASES)
def test_check_packing_accepts(config, attention, causal):
    check_packing(build(config, attention, causal), causal, max_length=96)


DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
T5 = T5Config(**TOKENS, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DebertaV2Config(**SMALL, **DEBERTA), "does not run on packed inputs (RuntimeError"),
        # row length = hidden size: the mask of the wrong shape broadcasts
        (
            DebertaV2Config(**SMALL | {"hidden_size": 96}, **DEBERTA),
            "DebertaV2ForMaskedLM with eager attention cannot",
        ),
        (ConvBertConfig(**SMALL), "differ from those of the same document alone"),
        (FNetConfig(**SMALL), "differ from those of the same document alone"),
        (T5, "is an encoder-decoder"),
    ],
    ids=["deberta-v2", "deberta-v2-broadcast", "convbert", "fnet", "t5"],
)
def test_check_packing_refuses(config, message):
    if config is T5:
        from transformers import T5ForConditionalGeneration

        model = T5ForConditionalGeneration(config)
    else:
        model = build(config, "eager")
    with pytest.raises(ValueError) as error:
        check_packing(model, max_length=96)
    assert message in str(error.value)
    assert "`--packing false`" in str(error.value)


def test_check_packing_refuses_layers_that_carry_a_state():
    model = build(ENCODERS["modernbert"])
    model.config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    with pytest.raises(
        ValueError, match="layers of type linear_attention carry a state from one document to the next"
    ):
        check_packing(model)


@pytest.mark.parametrize("causal", [False, True])
def test_check_packing_refuses_the_wrong_direction(causal):
    model = build(ENCODERS["bert"] if causal else DECODERS["gpt2"], causal=not causal)
    with pytest.raises(ValueError, match=rf"differ from those of the same document alone by .* \(causal={causal}\)"):
        check_packing(model, causal=causal, max_length=96)


def without_isolation(arguments, sequence_ids):
    return arguments | {"attention_mask": (sequence_ids > 0).long()}


def without_restart(arguments, sequence_ids):
    return arguments | {"position_ids": torch.arange(sequence_ids.shape[1]).expand_as(sequence_ids)}


def without_window(arguments, sequence_ids):
    full = arguments["attention_mask"]["full_attention"]
    return arguments | {"attention_mask": {"full_attention": full, "sliding_attention": full}}


def without_dtype(arguments, sequence_ids):  # the form of sdpa given to eager: 0 and 1 are added to the scores
    return arguments | {"attention_mask": arguments["attention_mask"] == 0}


@pytest.mark.parametrize(
    ("name", "dtype", "fault"),
    [
        ("bert", torch.float32, without_isolation),
        ("bert", torch.float32, without_restart),
        ("bert", torch.float32, without_dtype),
        ("modernbert", torch.float32, without_window),
        ("bert", torch.bfloat16, without_isolation),
        ("bert", torch.bfloat16, without_restart),
    ],
)
def test_check_packing_sees_each_fault(monkeypatch, name, dtype, fault):
    model = build(ENCODERS[name], "eager").to(dtype)
    check_packing(model, max_length=96)
    monkeypatch.setattr(
        packing_checks, "packed_inputs", lambda m, ids, causal: fault(packed_inputs(m, ids, causal), ids)
    )
    with pytest.raises(ValueError, match="cannot keep packed documents apart"):
        check_packing(model, max_length=96)


def test_check_packing_leaves_no_trace():
    model = build(ENCODERS["bert"], "eager").train()
    model.bert.encoder.layer[1].eval()  # as a frozen part would be
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def random_numbers():
        return torch.rand(3).tolist(), np.random.rand(), random.random()

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = random_numbers()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    check_packing(model)
    assert random_numbers() == expected
    assert [module.training for module in model.modules()] == modes
    assert not model.base_model._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_recommended_attention():
    bert, mpnet = ENCODERS["bert"], ENCODERS["mpnet"]
    assert recommended_attention(bert, 128, "cpu") == "eager"
    assert recommended_attention(bert, 512, "cpu", torch.bfloat16) == "eager"
    assert recommended_attention(bert, 512, "cpu", torch.float32) == "sdpa"
    assert recommended_attention(bert, 1024, "cpu", torch.bfloat16) == "sdpa"
    assert recommended_attention(mpnet, 1024, "cpu") == "eager"  # has nothing else
    assert recommended_attention(bert, 512, torch.device("cuda", 0), torch.bfloat16) == "sdpa"
    assert recommended_attention(bert, 128, "mps") == "sdpa"
    build(mpnet, recommended_attention(mpnet, 512, "cuda", torch.bfloat16))


def test_recommended_attention_with_flash_attention_installed(monkeypatch):
    monkeypatch.setattr(packing, "is_flash_attn_2_available", lambda: True)
    bert = ENCODERS["bert"]
    assert recommended_attention(bert, 2048, "cuda", torch.bfloat16) == "flash_attention_2"
    assert recommended_attention(bert, 2048, "cuda", torch.float32) == "sdpa"
    assert recommended_attention(bert, 128, "cuda", torch.bfloat16) == "sdpa"
    assert recommended_attention(ENCODERS["mpnet"], 2048, "cuda", torch.bfloat16) == "eager"


def assert_valid(lengths, rows, starts, capacity):
    used = np.zeros((rows.max() + 1, capacity), dtype=int)
    for length, row, start in zip(lengths, rows, starts, strict=True):
        assert start + length <= capacity
        used[row, start : start + length] += 1
    assert used.max() == 1  # no two pieces in one slot
    assert used[:, 0].all()  # no empty row
    assert used.sum() == lengths.sum()


def one_at_a_time(lengths, capacity):
    """Number of rows of best-fit decreasing as in the textbook."""
    left = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in left if space >= length]
        if fitting:
            left.remove(min(fitting))
        left.append((min(fitting) if fitting else capacity) - length)
    return len(left)


def test_pack_places_every_piece_once_as_best_fit_decreasing():
    generator = np.random.default_rng(0)
    for _ in range(100):
        capacity = int(generator.integers(1, 60))
        lengths = generator.integers(1, capacity + 1, size=int(generator.integers(1, 150)))
        rows, starts = pack(lengths, capacity)
        assert_valid(lengths, rows, starts, capacity)
        assert rows.max() + 1 == one_at_a_time(lengths.tolist(), capacity)
        again = pack(lengths, capacity)
        assert np.array_equal(rows, again[0])
        assert np.array_equal(starts, again[1])


@pytest.mark.parametrize("capacity", [128, 512])
@pytest.mark.parametrize("kind", ["lines", "sentences", "paragraphs", "cut documents"])
def test_pack_wastes_less_than_two_percent(kind, capacity):
    generator = np.random.default_rng(0)
    if kind == "cut documents":
        documents = generator.lognormal(5.5, 1.2, 1500).astype(int) + 3
        pieces = [np.append(np.full(n // capacity, capacity), n % capacity) for n in documents]
        lengths = np.concatenate(pieces)
        lengths = lengths[lengths > 0]
    else:
        mean, deviation = {"lines": (2.3, 0.7), "sentences": (3.2, 0.5), "paragraphs": (4.2, 0.8)}[kind]
        lengths = np.clip(generator.lognormal(mean, deviation, 2000).astype(int), 3, capacity)
    rows, starts = pack(lengths, capacity)
    assert_valid(lengths, rows, starts, capacity)
    assert 1 - lengths.sum() / (capacity * (rows.max() + 1)) < 0.02


def test_pack_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="between 1 and capacity=8 tokens, got one of 9"):
        pack(np.array([3, 9]), 8)
    with pytest.raises(ValueError, match="got one of 0"):
        pack(np.array([3, 0]), 8)
    with pytest.raises(ValueError, match="vector of integers"):
        pack(np.array([1.5]), 8)
    # 70 of 128 slots: one piece a row is all there is
    rows, _ = pack(np.full(10, 70), 128)
    assert sorted(rows.tolist()) == list(range(10))


def test_pack_of_nothing_and_of_full_rows():
    assert [array.tolist() for array in pack(np.array([], dtype=int), 8)] == [[], []]
    rows, starts = pack(np.array([8, 8, 8]), 8)
    assert rows.tolist() == [0, 1, 2]
    assert starts.tolist() == [0, 0, 0]
