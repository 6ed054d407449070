"""Messages between ranks: each sent once, to the rank that needs it, in an order that both sides know."""

from collections import Counter
from functools import partial
from itertools import product

import pytest

from autopar.plan.decisions import ScheduleName
from autopar.runtime.messages import Message, needed, produced, traffic
from autopar.schedule.actions import Action, ActionKind, schedule_actions, stage_rank

CASES = [
    (name, pipeline, virtual, m)
    for name, pipeline, m in product(ScheduleName, (1, 2, 3, 4, 6), (1, 2, 3, 4, 5, 7, 12))
    for virtual in {"interleaved": (2, 3), "zbv": (2,)}.get(name, (1,))
]


def schedule_of(name, pipeline, virtual, m):
    actions = schedule_actions(name, pipeline * virtual, m, virtual)
    return actions, pipeline * virtual, partial(stage_rank, name, pipeline=pipeline, virtual=virtual)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_message_travels_once_and_is_taken_once(case):
    actions, num_stages, rank_of = schedule_of(*case)
    sent = Counter(
        message for messages in traffic(actions, num_stages, rank_of).values() for message in messages
    )
    taken = Counter()
    for rank, own in enumerate(actions):
        for message in (needed(action, num_stages) for action in own):
            if message is None:
                continue
            assert rank_of(message.stage) == rank
            if rank_of(message.stage + (1 if message.is_gradient else -1)) != rank:
                taken[message] += 1
    assert sent == taken and set(sent.values()) <= {1}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_step_ends_when_messages_come_in_order_and_nothing_but_a_receive_waits(case):
    actions, num_stages, rank_of = schedule_of(*case)
    orders = traffic(actions, num_stages, rank_of)
    num_sent = Counter()
    handed_over = set()
    position = [0] * len(actions)
    moved = True
    while moved:
        moved = False
        for rank, own in enumerate(actions):
            while position[rank] < len(own):
                action = own[position[rank]]
                message = needed(action, num_stages)
                if message is not None:
                    sender = rank_of(message.stage + (1 if message.is_gradient else -1))
                    if sender == rank:
                        arrived = message in handed_over
                    else:
                        arrived = orders[sender, rank].index(message) < num_sent[sender, rank]
                    if not arrived:
                        break
                given = produced(action, num_stages)
                if given is not None and rank_of(given.stage) == rank:
                    handed_over.add(given)
                elif given is not None:
                    channel = rank, rank_of(given.stage)
                    assert orders[channel][num_sent[channel]] == given
                    num_sent[channel] += 1
                position[rank] += 1
                moved = True
    assert position == [len(own) for own in actions]


def test_neighbouring_stages_of_one_rank_need_no_message():
    actions, num_stages, rank_of = schedule_of(ScheduleName.ZBV, 2, 2, 1)
    orders = traffic(actions, num_stages, rank_of)
    assert orders == {
        (0, 1): (Message(False, 1, 0), Message(True, 2, 0)),
        (1, 0): (Message(False, 3, 0), Message(True, 0, 0)),
    }


def test_weight_gradients_neither_wait_nor_tell():
    action = Action(ActionKind.WEIGHT_BACKWARD, 1, 0)
    assert needed(action, 3) is None and produced(action, 3) is None
