"""The language models of the published runs, from GPT-2 to Llama: one file, options as each source states.

``kernels="fused"`` stands for the fused kernels of Megatron-LM and of ``torch.compile``, which eager PyTorch
does not have: one operator with the traffic of the fused kernel takes the place of several (causal mask and
softmax; bias, dropout and residual; rotation of queries and keys; gate and product). The file exists to be
costed; with fused kernels it does not compute what the published models compute.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal self-attention, with as many or fewer heads of keys and values as of queries."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        bias: bool,
        rotary: bool,
        flash: bool,
        fused: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, hidden // heads
        self.rotary, self.flash, self.fused, self.dropout = rotary, flash, fused, dropout
        self.grouped = kv_heads != heads
        if self.grouped or rotary:
            self.q = nn.Linear(hidden, heads * self.size, bias=bias)
            self.k = nn.Linear(hidden, kv_heads * self.size, bias=bias)
            self.v = nn.Linear(hidden, kv_heads * self.size, bias=bias)
        else:
            self.qkv = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.proj = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Hidden states to hidden states, ``(batch, seq, hidden)``."""
        batch, seq, hidden = x.shape
        if self.grouped or self.rotary:
            q = self.q(x).view(batch, seq, self.heads, self.size)
            k = self.k(x).view(batch, seq, self.kv_heads, self.size)
            v = self.v(x).view(batch, seq, self.kv_heads, self.size)
        else:
            q, k, v = (part.view(batch, seq, self.heads, self.size) for part in self.qkv(x).split(hidden, 2))
        if rotation is not None:
            q, k = self._rotate(q, rotation), self._rotate(k, rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.flash:
            y = F.scaled_dot_product_attention(
                q, k, v, dropout_p=0.0, is_causal=True, enable_gqa=self.grouped
            )
        else:
            y = torch.matmul(self._probabilities(torch.matmul(q, k.transpose(2, 3))), v)
        return self.proj(y.transpose(1, 2).reshape(batch, seq, hidden))

    def _rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        if self.fused:
            return x * rotation
        first, second = x.chunk(2, dim=-1)
        return x * rotation + torch.cat((-second, first), dim=-1) * rotation

    def _probabilities(self, scores: Tensor) -> Tensor:
        if not self.fused:
            seq = scores.shape[-1]
            mask = torch.ones(seq, seq, dtype=torch.bool, device=scores.device).triu(1)
            scores = (scores * self.size**-0.5).masked_fill(mask, -10000.0)
        return F.dropout(torch.softmax(scores, dim=-1), self.dropout)


class MLP(nn.Module):
    """Two linear layers with a GELU between them, or three with a gate."""

    def __init__(self, hidden: int, ffn: int, bias: bool, gated: bool, fused: bool) -> None:
        super().__init__()
        self.gated, self.fused = gated, fused
        self.up = nn.Linear(hidden, ffn, bias=bias)
        if gated:
            self.gate = nn.Linear(hidden, ffn, bias=bias)
        self.down = nn.Linear(ffn, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states to hidden states, ``(batch, seq, hidden)``."""
        if not self.gated:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        gate, up = self.gate(x), self.up(x)
        return self.down(gate * up if self.fused else F.silu(gate) * up)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, attention: Attention, mlp: MLP, norms: list[nn.Module], dropout: float) -> None:
        super().__init__()
        self.fused = attention.fused
        self.ln_1, self.ln_2 = norms
        self.attn, self.mlp, self.dropout = attention, mlp, dropout

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Hidden states to hidden states, ``(batch, seq, hidden)``."""
        x = x + self._dropped(self.attn(self.ln_1(x), rotation))
        return x + self._dropped(self.mlp(self.ln_2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return x if self.fused else F.dropout(x, self.dropout)


class LanguageModel(nn.Module):
    """Embeddings, a chain of blocks, a final norm and the language-model head."""

    def __init__(
        self,
        blocks: list[Block],
        norm: nn.Module,
        hidden: int,
        seq: int,
        vocab: int,
        rotary: bool,
        tied: bool,
        compiled_loss: bool,
    ) -> None:
        super().__init__()
        self.compiled_loss = compiled_loss
        self.wte = nn.Embedding(vocab, hidden)
        self.wpe = None if rotary else nn.Embedding(seq, hidden)
        self.blocks = nn.ModuleList(blocks)
        self.ln_f = norm
        self.lm_head = nn.Linear(hidden, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight
        size = blocks[0].attn.size
        if rotary:
            self.register_buffer("rotation", torch.ones(seq, 1, size), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Tokens ``(batch, seq)`` to logits ``(batch, seq, vocab)``."""
        x = self.wte(input_ids)
        rotation = None
        if self.wpe is None:
            rotation = self.rotation
        else:
            x = x + self.wpe(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = block(x, rotation)
        logits = self.lm_head(self.ln_f(x))
        return logits if self.compiled_loss else logits.float()


def build_model(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    seq: int,
    vocab: int,
    gated: bool = False,
    rotary: bool = False,
    rms: bool = False,
    bias: bool = True,
    flash: bool = False,
    tied: bool = True,
    dropout: float = 0.0,
    fused: bool = False,
    compiled_loss: bool = False,
) -> nn.Module:
    """The model; ``ffn`` is the width inside an MLP.

    ``compiled_loss``: logits become fp32 inside the kernel of the loss, and nowhere in memory.
    """

    def norm() -> nn.Module:
        return nn.RMSNorm(hidden) if rms else nn.LayerNorm(hidden, bias=bias)

    blocks = [
        Block(
            Attention(hidden, heads, kv_heads, bias, rotary, flash, fused, dropout),
            MLP(hidden, ffn, bias, gated, fused),
            [norm(), norm()],
            dropout,
        )
        for _ in range(layers)
    ]
    return LanguageModel(blocks, norm(), hidden, seq, vocab, rotary, tied, compiled_loss)


def example_batch(batch_size: int, seq: int, vocab: int) -> dict[str, Tensor]:
    """Tokens and the tokens that follow them."""
    return {
        "input_ids": torch.zeros(batch_size, seq, dtype=torch.long),
        "labels": torch.zeros(batch_size, seq, dtype=torch.long),
    }


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy; the model has made its logits fp32, as all of the published runs do."""
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
