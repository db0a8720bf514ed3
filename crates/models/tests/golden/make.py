"""Makes the golden models of this folder: GPT-2 and BERT of a few hundred weights, in the files of
Hugging Face, and what they give for some tokens.

    pip install numpy safetensors && python make.py

Written from the layouts of Hugging Face's library (Conv1D keeps [fan_in, fan_out] and one matrix
for queries, keys and values) in plain NumPy and float64: independent of Onesigma and of its names.
"""

import json
import math
import pathlib

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(7)


def normal(*shape, std=0.5, mean=0.0):
    return (mean + std * RNG.standard_normal(shape)).astype(np.float32)


def layer_norm(x, w, b, eps):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w + b


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v, heads, hidden):
    """[T, C] each; hidden[i, j] says that query i does not see key j."""
    d = q.shape[-1] // heads
    out = np.zeros_like(q)
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        logits = q[:, part] @ k[:, part].T / math.sqrt(d)
        logits[hidden] = -1e30
        out[:, part] = softmax(logits) @ v[:, part]
    return out


def write(name, config, weights, tokens, outputs, **more):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected = {"tokens": tokens, "outputs": np.asarray(outputs).ravel().tolist(), **more}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def gpt2():
    v, p, c, layers, heads, eps = 13, 6, 8, 2, 2, 1e-5
    w = {"transformer.wte.weight": normal(v, c), "transformer.wpe.weight": normal(p, c)}
    norms = ["transformer.ln_f"]
    for n in range(layers):
        h = f"transformer.h.{n}"
        norms += [f"{h}.ln_1", f"{h}.ln_2"]
        for name, fan_in, fan_out in [
            ("attn.c_attn", c, 3 * c),
            ("attn.c_proj", c, c),
            ("mlp.c_fc", c, 4 * c),
            ("mlp.c_proj", 4 * c, c),
        ]:
            w[f"{h}.{name}.weight"] = normal(fan_in, fan_out)
            w[f"{h}.{name}.bias"] = normal(fan_out)
        # A buffer that old files have: the causal mask.
        w[f"{h}.attn.bias"] = np.tril(np.ones((p, p), np.float32))[None, None]
    for name in norms:
        w[f"{name}.weight"], w[f"{name}.bias"] = normal(c, std=0.1, mean=1.0), normal(c)

    tokens = [3, 12, 0, 5, 5]
    f = {name: x.astype(np.float64) for name, x in w.items()}
    conv = lambda name, x: x @ f[f"{name}.weight"] + f[f"{name}.bias"]
    norm = lambda name, x: layer_norm(x, f[f"{name}.weight"], f[f"{name}.bias"], eps)
    gelu = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    t = len(tokens)
    hidden = np.triu(np.ones((t, t), bool), 1)
    x = f["transformer.wte.weight"][tokens] + f["transformer.wpe.weight"][:t]
    for n in range(layers):
        h = f"transformer.h.{n}"
        q, k, val = np.split(conv(f"{h}.attn.c_attn", norm(f"{h}.ln_1", x)), 3, axis=-1)
        x = x + conv(f"{h}.attn.c_proj", attention(q, k, val, heads, hidden))
        x = x + conv(f"{h}.mlp.c_proj", gelu(conv(f"{h}.mlp.c_fc", norm(f"{h}.ln_2", x))))
    logits = norm("transformer.ln_f", x) @ f["transformer.wte.weight"].T
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": v,
        "n_positions": p,
        "n_ctx": p,
        "n_embd": c,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": None,
        "layer_norm_epsilon": eps,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
    }
    write("gpt2", config, w, tokens, logits)


def bert():
    v, p, c, layers, heads, inner, eps = 13, 7, 6, 2, 3, 10, 1e-5
    w = {
        "bert.embeddings.word_embeddings.weight": normal(v, c),
        "bert.embeddings.position_embeddings.weight": normal(p, c),
        "bert.embeddings.token_type_embeddings.weight": normal(2, c),
        "bert.embeddings.position_ids": np.arange(p, dtype=np.int64)[None],
        "cls.predictions.bias": normal(v),
    }
    linears = [("cls.predictions.transform.dense", c, c)]
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for n in range(layers):
        h = f"bert.encoder.layer.{n}"
        norms += [f"{h}.attention.output.LayerNorm", f"{h}.output.LayerNorm"]
        linears += [(f"{h}.attention.self.{name}", c, c) for name in ("query", "key", "value")]
        linears += [
            (f"{h}.attention.output.dense", c, c),
            (f"{h}.intermediate.dense", c, inner),
            (f"{h}.output.dense", inner, c),
        ]
    for name, fan_in, fan_out in linears:
        w[f"{name}.weight"], w[f"{name}.bias"] = normal(fan_out, fan_in), normal(fan_out)
    for name in norms:
        w[f"{name}.weight"], w[f"{name}.bias"] = normal(c, std=0.1, mean=1.0), normal(c)

    tokens, segments, mask = [2, 7, 11, 3, 4, 9, 3], [0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]
    f = {name: x.astype(np.float64) for name, x in w.items()}
    linear = lambda name, x: x @ f[f"{name}.weight"].T + f[f"{name}.bias"]
    norm = lambda name, x: layer_norm(x, f[f"{name}.weight"], f[f"{name}.bias"], eps)
    gelu = lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    e = "bert.embeddings"
    x = f[f"{e}.word_embeddings.weight"][tokens] + f[f"{e}.position_embeddings.weight"]
    x = norm(f"{e}.LayerNorm", x + f[f"{e}.token_type_embeddings.weight"][segments])
    hidden = np.tile(np.array(mask) == 0, (len(tokens), 1))
    for n in range(layers):
        h = f"bert.encoder.layer.{n}"
        q, k, val = (linear(f"{h}.attention.self.{m}", x) for m in ("query", "key", "value"))
        mixed = linear(f"{h}.attention.output.dense", attention(q, k, val, heads, hidden))
        x = norm(f"{h}.attention.output.LayerNorm", x + mixed)
        inside = gelu(linear(f"{h}.intermediate.dense", x))
        x = norm(f"{h}.output.LayerNorm", x + linear(f"{h}.output.dense", inside))
    head = "cls.predictions.transform"
    y = norm(f"{head}.LayerNorm", gelu(linear(f"{head}.dense", x)))
    logits = y @ f[f"{e}.word_embeddings.weight"].T + f["cls.predictions.bias"]
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": v,
        "hidden_size": c,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": p,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": eps,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
    }
    write("bert", config, w, tokens, logits, segments=segments, mask=mask)


gpt2()
bert()
