"""Run several sequences in few rows, almost without padding: the forward path of training on outputs.

Legend: B sequences, R rows, W tokens of a row, M supervised positions, D hidden, V vocabulary.

Positions start anew at every sequence; from that transformers builds a block-diagonal causal mask, so no
sequence sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.engine import BlockEngine

LARGEST_PADDING = 0.05
"""Share of the tokens fed that may be padding before rows are laid end to end."""


@dataclass(frozen=True)
class PackedBatch:
    """Hold sequences laid end to end in rows, and what is to be predicted in them."""

    input_ids_RW: Tensor
    position_ids_RW: Tensor
    """Position inside the sequence; it starts anew with every sequence and with the padding of a row."""
    sources_M: Tensor
    """Flat position, row * W + column, whose prediction is supervised."""
    labels_M: Tensor
    """Token to be predicted there."""
    owners_M: Tensor
    """Sequence, 0 .. B-1, to which the label belongs; ascending."""
    num_sequences: int
    num_tokens: int
    """Tokens fed, padding not counted."""


def pack_examples(
    examples: Sequence[EncodedExample], device: torch.device, *, everything: bool = False
) -> PackedBatch:
    """Lay examples end to end in rows as long as the longest; their answer tokens are the labels.

    The last token of an example predicts nothing and is not fed. The first token of an example has nothing
    before it and is no label.

    Args:
        examples: Tokens and answer masks.
        device: Where the tensors go.
        everything: Take every token but the first as a label, whatever the answer mask says.
    """
    lengths = [len(example.input_ids) - 1 for example in examples]
    rows = fill_rows(lengths)
    width = max(lengths)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    positions = torch.zeros_like(ids)
    starts = [0] * len(examples)
    for row, members in enumerate(rows):
        column = 0
        for index in members:
            end = column + lengths[index]
            ids[row, column:end] = torch.tensor(examples[index].input_ids[:-1])
            positions[row, column:end] = torch.arange(lengths[index])
            starts[index] = row * width + column
            column = end
        positions[row, column:] = torch.arange(width - column)
    sources: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for index, example in enumerate(examples):
        answers = [t for t in range(1, lengths[index] + 1) if everything or example.answer_mask[t]]
        sources += [starts[index] + t - 1 for t in answers]
        labels += [example.input_ids[t] for t in answers]
        owners += [index] * len(answers)

    def flat(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return PackedBatch(
        ids.to(device),
        positions.to(device),
        flat(sources),
        flat(labels),
        flat(owners),
        len(examples),
        sum(lengths),
    )


def fill_rows(lengths: Sequence[int], capacity: int | None = None) -> list[list[int]]:
    """Distribute lengths over rows, longest first into the first row with room; rows hold the longest."""
    capacity = capacity or max(lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def supervised_states(engine: BlockEngine, batch: PackedBatch) -> Tensor:
    """Run the whole decoder and return the final states at the supervised positions, M x D."""
    output = engine.base(input_ids=batch.input_ids_RW, position_ids=batch.position_ids_RW, use_cache=False)
    states_RWD: Tensor = output.last_hidden_state
    return states_RWD.flatten(0, 1)[batch.sources_M]


def head_logits(model: Any, states_MD: Tensor) -> Tensor:
    """Return float32 logits M x V of final states, with the soft cap or scale of the model, if it has one."""
    logits: Tensor = model.get_output_embeddings()(states_MD.contiguous()).float()
    return adjust_logits(model.config, logits)


def adjust_logits(config: Any, logits_MV: Tensor) -> Tensor:
    """Apply what some families do after the head: Gemma 2 caps logits, Granite and Cohere scale them."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap = getattr(text_config, "final_logit_softcapping", None)
    if cap:
        logits_MV = torch.tanh(logits_MV / cap) * cap
    divisor = getattr(text_config, "logits_scaling", None)
    if divisor:
        logits_MV = logits_MV / divisor
    factor = getattr(text_config, "logit_scale", None)
    return logits_MV * factor if factor else logits_MV


@dataclass(frozen=True)
class RowLayout:
    """Say where every real token of padded rows lies when the rows are laid end to end."""

    sources_T: Tensor
    """Flat position in the padded rows of every token."""
    targets_T: Tensor
    """Flat position in the packed rows."""
    position_ids_RW: Tensor
    """Position inside the sequence; it starts anew with every sequence and with the padding of a row."""


def plan_layout(lengths: Sequence[int], width: int, device: torch.device) -> RowLayout | None:
    """Lay sequences end to end so that little is padding; None where the padded rows are full enough.

    Rows are as long as the longest sequence, or twice, four times ... where that leaves too much padding.

    Args:
        lengths: Real tokens of each padded row; 0 where a row counts nowhere.
        width: Length of the padded rows.
        device: Where the tensors go.
    """
    total = sum(lengths)
    if total == 0 or total >= (1 - LARGEST_PADDING) * len(lengths) * width:
        return None
    capacity = max(lengths)
    while True:
        rows = fill_rows(lengths, capacity)
        used = max(sum(lengths[i] for i in row) for row in rows)
        if total >= (1 - LARGEST_PADDING) * len(rows) * used:
            break
        capacity = min(2 * capacity, total)
    positions_RW = torch.zeros((len(rows), used), dtype=torch.long)
    sources, targets = [], []
    for number, row in enumerate(rows):
        column = 0
        for index in row:
            steps = torch.arange(lengths[index])
            positions_RW[number, column : column + lengths[index]] = steps
            sources.append(index * width + steps)
            targets.append(number * used + column + steps)
            column += lengths[index]
        positions_RW[number, column:] = torch.arange(used - column)
    return RowLayout(torch.cat(sources).to(device), torch.cat(targets).to(device), positions_RW.to(device))


def window_states(engine: BlockEngine, states_BLD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Run the open window on padded rows, almost without computing their padding.

    Args:
        engine: Engine with an open window.
        states_BLD: States that enter it, right-padded.
        lengths: Real tokens of each row.

    Returns:
        The output, B x L x D; meaningless on padding.
    """
    rows, width, hidden = states_BLD.shape
    layout = plan_layout(lengths, width, states_BLD.device)
    if layout is None:
        return engine.forward(states_BLD)
    packed_TD = states_BLD.new_zeros((layout.position_ids_RW.numel(), hidden))
    packed_TD[layout.targets_T] = states_BLD.reshape(-1, hidden)[layout.sources_T]
    packed_RWD = packed_TD.view(*layout.position_ids_RW.shape, hidden)
    output_TD = engine.forward(packed_RWD, layout.position_ids_RW).flatten(0, 1)[layout.targets_T]
    padded_TD = output_TD.new_zeros((rows * width, hidden))
    return padded_TD.index_copy(0, layout.sources_T, output_TD).view(rows, width, hidden)
