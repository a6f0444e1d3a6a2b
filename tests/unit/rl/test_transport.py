"""A trainer and an orchestrator over a folder: all calls, and either of the two killed and started again."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.folder_server import SIZE, ServerThread, make_service
from support.rollouts import GatedGenerator, ListedEnvironment, make_orchestrator
from support.waiting import wait_until

from surogate.errors import CheckpointError, DataError, GeneratorError
from surogate.rl import shared_folder, transport
from surogate.rl.feed import RolloutService
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.transport import FolderFeed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "_POLL_SECONDS", 0.002)
    monkeypatch.setattr(transport, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(transport, "_RETRY_SECONDS", 0.01)


@pytest.fixture
def servers(tmp_path):
    """Start orchestrators at tmp_path; all are ended."""
    started = []

    def start(make=None):
        started.append(ServerThread(tmp_path, make))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def server(servers):
    return servers()


def weights(version):
    return WeightUpdate(version=version, tensors=lambda: iter([("w", torch.full((3,), float(version)))]))


def make_feed(path, ledger=None, timeout=20.0):
    feed = FolderFeed(path, timeout)
    if ledger is not None:
        feed.restore(ledger)
    feed.start()
    return feed


def ids(batch):
    return [group.example.id for group in batch.groups]


def run_steps(feed, first, last):
    batches = []
    for step in range(first, last):
        batches.append(feed.next_batch(step))
        feed.publish(weights(step + 1))
    return batches


def refused(ask, argument, text):
    with pytest.raises(GeneratorError, match=text):
        ask(argument)


def hang(server, method):
    """Let a method of a service never answer, and return what tells that it was asked."""
    reached = threading.Event()

    async def wait_forever(*arguments):
        reached.set()
        await asyncio.Event().wait()

    setattr(server.service, method, wait_forever)
    return reached


def test_every_call_is_answered(tmp_path, server):
    feed = make_feed(tmp_path)
    assert feed.facts == {"seq_len": 64}
    feed.publish(replace(weights(0), probe_ids=(1, 2, 3)))
    assert feed.scores() == [-1.0] * 2
    assert [len(group.rollouts) for group in feed.probe(2)] == [2, 2]
    assert feed.evaluate(1) is None
    result = feed.evaluate(2)
    assert result.version == 2 and len(result.rollouts) == 2 and result.metrics["eval/e/failed"] == 0
    batches = run_steps(feed, 0, 3)
    assert [batch.step for batch in batches] == [0, 1, 2]
    assert batches[2].rollouts[0].versions and batches[2].metrics["staleness/max"] <= 1
    feed.close()
    feed.close()
    assert server.is_over.wait(10) and server.error is None and server.generator.is_closed
    assert not list(tmp_path.glob("calls/*/*"))


def test_the_engine_gets_the_weights_from_the_folder_and_old_ones_are_removed(tmp_path, server):
    feed = make_feed(tmp_path)
    for version in range(4):
        feed.publish(weights(version))
    loaded = server.generator.loads[-1]
    assert loaded.version == 3 and loaded.adapter_dir is None
    assert load_file(loaded.weights_dir / "model.safetensors")["w"].tolist() == [3.0] * 3
    assert (loaded.weights_dir / "STABLE").exists()
    assert sorted(path.name for path in tmp_path.glob("weights/*/*")) == ["version_2", "version_3"]


def test_an_adapter_is_published_as_a_copy(tmp_path, server):
    source = tmp_path / "adapter"
    source.mkdir()
    (source / "adapter_config.json").write_text("{}")
    feed = make_feed(tmp_path)
    feed.publish(WeightUpdate(version=0, adapter_dir=source, norm_noise_sigma=0.5))
    (loaded,) = server.generator.loads
    assert loaded.norm_noise_sigma == 0.5 and loaded.weights_dir is None
    assert {path.name for path in loaded.adapter_dir.iterdir()} == {"adapter_config.json", "STABLE"}


def test_the_folder_may_have_another_path_for_the_trainer(tmp_path, servers):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.symlink_to(here)
    server = ServerThread(here)
    feed = make_feed(there)
    feed.publish(weights(0))
    assert server.generator.loads[0].weights_dir.is_relative_to(here)
    server.kill()


def test_weights_without_the_marker_are_refused(tmp_path, server):
    feed = make_feed(tmp_path)
    feed.publish(weights(0))
    loaded = server.generator.loads[0].weights_dir
    (loaded / "STABLE").unlink()
    with pytest.raises(GeneratorError, match="version_0 is not complete: it holds no STABLE"):
        feed._call("publish", **feed._update)
    feed.publish(weights(0))
    assert (loaded / "STABLE").exists() and len(server.generator.loads) == 2


def test_a_big_batch_arrives_unchanged(tmp_path, servers):
    def script(ids, n):
        return [[(7 * place + index) % 1000 for index in range(4000)] for place in range(n)]

    generator = GatedGenerator(script=script, max_model_len=9000)
    spec = {"seq_len": 5000, "num_groups": 4, "group_size": 16}
    spec["sampling"] = make_orchestrator(generator).spec.sampling.__class__(max_tokens=4500)
    server = servers(lambda: make_service(generator, 0, **spec))
    sent = []
    inner = server.service.next_batch

    async def next_batch(step):
        sent.append(await inner(step))
        return sent[-1]

    server.service.next_batch = next_batch
    feed = make_feed(tmp_path)
    feed.publish(weights(0))
    batch = feed.next_batch(0)
    assert sum(rollout.num_sampled for rollout in batch.rollouts) == 4 * 16 * 4000
    assert batch == sent[0]


@pytest.mark.parametrize("error", [DataError("no prompts"), CheckpointError("of another run"), GeneratorError("gone")])
def test_errors_arrive_with_their_kind_and_the_orchestrator_goes_on(tmp_path, server, error):
    inner = server.service.evaluate

    async def evaluate(version):
        server.service.evaluate = inner
        raise type("Special", (type(error),), {})(str(error))

    server.service.evaluate = evaluate
    feed = make_feed(tmp_path)
    feed.publish(weights(0))
    with pytest.raises(type(error), match=str(error)) as caught:
        feed.evaluate(1)
    assert type(caught.value) is type(error)
    assert feed.evaluate(1) is None


def test_a_mistake_in_the_orchestrator_is_told_and_written_down(tmp_path, server, caplog):
    async def scores():
        raise KeyError("secret")

    server.service.scores = scores
    feed = make_feed(tmp_path)
    feed.publish(weights(0))
    with pytest.raises(GeneratorError, match="KeyError: 'secret'"):
        feed.scores()
    assert "A call failed" in caplog.text and "KeyError" in caplog.text
    with pytest.raises(GeneratorError, match="unexpected keyword argument"):
        feed._call("scores", tokens=[1])
    with pytest.raises(GeneratorError, match="KeyError: 'dance'"):
        feed._call("dance")


def test_what_cannot_be_written_as_json_is_told(tmp_path, server):
    async def scores():
        return [torch.tensor(1.0)]

    server.service.scores = scores
    feed = make_feed(tmp_path)
    feed.publish(weights(0))
    with pytest.raises(GeneratorError, match="TypeError: Object of type Tensor is not JSON serializable"):
        feed.scores()


# ---- one of the two is started again


def test_a_trainer_that_was_killed_goes_on_from_its_ledger(tmp_path, server):
    """Its last call waits in the orchestrator, and its weights lie there under numbers that are trained anew."""
    first = make_feed(tmp_path)
    first.publish(weights(0))
    kept = run_steps(first, 0, 2)
    first.next_batch(2)
    server.do(lambda: server.generator.gates.update(all=asyncio.Event()))
    first.publish(weights(3))
    first.next_batch(3)
    first.publish(weights(4))
    reached, inner = threading.Event(), server.service.next_batch

    async def next_batch(step):
        reached.set()
        return await inner(step)

    server.service.next_batch = next_batch
    asking = threading.Thread(target=refused, args=[first.next_batch, 4, "Another trainer has taken over"])
    asking.start()
    assert reached.wait(10)

    second = make_feed(tmp_path, json.loads(json.dumps(kept[-1].ledger)))
    asking.join(10)
    server.do(server.generator.gates.clear)
    second.publish(WeightUpdate(version=2, tensors=lambda: iter([("w", torch.full((3,), 20.0))])))
    assert load_file(server.generator.loads[-1].weights_dir / "model.safetensors")["w"][0] == 20.0
    batches = run_steps(second, 2, SIZE // 2)
    assert Counter(e for batch in kept + batches for e in ids(batch)) == {f"a/{i}": 1 for i in range(SIZE)}
    assert not [path for path in tmp_path.glob("weights/*") if path.name != second._session]


def test_an_orchestrator_that_was_killed_between_calls_is_told_where_the_run_stands(tmp_path, servers):
    server = servers()
    feed = make_feed_with(server, tmp_path)
    batches = run_steps(feed, 0, 3)
    for first, last in ((3, 5), (5, 6), (6, SIZE // 2)):
        server.kill()
        server = servers()
        batches += run_steps(feed, first, last)
        assert server.generator.loads[0].version == first
    assert Counter(e for batch in batches for e in ids(batch)) == {f"a/{i}": 1 for i in range(SIZE)}


def make_feed_with(server, path):
    feed = make_feed(path)
    feed.publish(weights(0))
    return feed


@pytest.mark.parametrize("method", ["next_batch", "publish", "scores", "evaluate", "probe"])
def test_an_orchestrator_killed_in_the_middle_of_a_call_is_asked_again(tmp_path, servers, method):
    old = servers()
    feed = make_feed_with(old, tmp_path)
    batches = run_steps(feed, 0, 2)
    feed.publish(replace(weights(2), probe_ids=(1, 2)))
    reached = hang(old, method)
    arguments = {"next_batch": (2,), "publish": (weights(2),), "scores": (), "evaluate": (2,), "probe": (1,)}
    answers = []
    asking = threading.Thread(target=lambda: answers.append(getattr(feed, method)(*arguments[method])))
    asking.start()
    assert reached.wait(10)
    old.kill()
    new = servers()
    asking.join(10)
    assert len(answers) == 1 and new.generator.loads[0].version == 2
    if method == "next_batch":
        feed.publish(weights(3))
    batches += answers if method == "next_batch" else []
    batches += run_steps(feed, len(batches), SIZE // 2)
    assert Counter(e for batch in batches for e in ids(batch)) == {f"a/{i}": 1 for i in range(SIZE)}


def test_an_orchestrator_killed_while_it_is_greeted_is_no_matter(tmp_path, servers, monkeypatch):
    feed = make_feed_with(servers(), tmp_path)
    reached = threading.Event()

    class Slow(RolloutService):
        async def publish(self, update):
            reached.set()
            await asyncio.Event().wait()

    def slow():
        service = make_service(GatedGenerator())
        service.__class__ = Slow
        return service

    second = servers(slow)  # takes over, and hangs while it is given the newest weights
    answers = []
    asking = threading.Thread(target=lambda: answers.append(feed.next_batch(0)))
    asking.start()
    assert reached.wait(10)
    second.kill()
    servers()
    asking.join(10)
    assert [batch.step for batch in answers] == [0]


def test_the_older_of_two_orchestrators_gives_way(tmp_path, servers):
    old = servers()
    feed = make_feed_with(old, tmp_path)
    new = servers()
    assert old.is_over.wait(10)
    assert isinstance(old.error, GeneratorError) and "Another orchestrator has taken over" in str(old.error)
    assert old.generator.is_closed
    assert feed.next_batch(0).step == 0 and new.generator.begun


def test_the_older_of_two_trainers_gives_way(tmp_path, server):
    old = make_feed_with(server, tmp_path)
    inner, reached = server.service.next_batch, hang(server, "next_batch")
    over = threading.Event()

    def ask():
        refused(old.next_batch, 0, "Another trainer has taken over")
        over.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert reached.wait(10)
    server.service.next_batch = inner
    new = make_feed_with(server, tmp_path)
    asking.join(10)
    assert over.is_set() and new.next_batch(0).step == 0


def test_a_goodbye_of_an_earlier_trainer_ends_nobody(tmp_path, servers):
    folder = tmp_path / "calls" / "0123"
    folder.mkdir(parents=True)
    (folder / "000009.call.json").write_text(json.dumps({"method": "goodbye", "arguments": {}}))
    (folder / "000003.call.json").write_text(json.dumps({"method": "next_batch", "arguments": {"step": 0}}))
    (folder / "000004.call.json").write_text('{"method": "next_ba')  # half of one
    server = servers()
    wait_until(lambda: (tmp_path / "orchestrator.json").exists())
    time.sleep(0.02)
    assert not server.is_over.is_set() and not list(folder.glob("*.answer.json"))
    feed = make_feed_with(server, tmp_path)
    assert feed.next_batch(0).step == 0
    assert not folder.exists()


def test_an_orchestrator_that_comes_late_is_waited_for(tmp_path, servers):
    (tmp_path / "orchestrator.json").write_text(json.dumps({"id": "dead", "turn": 3, "count": 7, "pid": 1}))
    threading.Timer(0.05, servers).start()
    feed = make_feed(tmp_path)
    feed.publish(weights(0))
    assert feed.next_batch(0).step == 0


# ---- waits and full disks


def test_waiting_is_told_and_ends(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(transport, "_NOTICE_SECONDS", 0.01)
    with (
        caplog.at_level("INFO", logger=transport.__name__),
        pytest.raises(GeneratorError, match=r"Given up after 0\.05 s\. Waiting for an orchestrator\. Start one at"),
    ):
        make_feed(tmp_path, timeout=0.05)
    assert "Waiting for an orchestrator. Start one at" in caplog.text
    assert not list(tmp_path.glob("calls/*/*"))


def test_a_silent_orchestrator_is_reported_and_one_that_works_is_not(tmp_path, servers, caplog, monkeypatch):
    monkeypatch.setattr(transport, "_NOTICE_SECONDS", 0.01)
    monkeypatch.setattr(transport, "SILENCE_SECONDS", 1.0)
    server = servers()
    feed = make_feed_with(server, tmp_path)
    feed.next_batch(0)
    server.do(lambda: server.generator.gates.update(all=asyncio.Event()))
    feed._timeout = 0.3
    with (
        caplog.at_level("INFO", logger=transport.__name__),
        pytest.raises(GeneratorError, match="which is alive, to answer next_batch"),
    ):
        feed.publish(weights(1))
        feed.next_batch(1)
        feed.next_batch(2)
    assert "which is alive" in caplog.text and "No sign" not in caplog.text
    server.kill()
    feed._timeout = 1.5
    with pytest.raises(GeneratorError, match=r"No sign of the orchestrator for [12] s, asked for scores"):
        feed.scores()


def test_clocks_that_differ_do_not_matter(tmp_path, server, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    os.utime(tmp_path, (0, 0))
    assert make_feed_with(server, tmp_path).next_batch(0).step == 0


def full_disk(monkeypatch, name):
    """Let one function of shared_folder's os fail as on a full disk, while is_full says so."""
    state, replace = {"is_full": True}, os.replace

    def fail(source, target):
        if state["is_full"] and name in target.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(shared_folder.os, "replace", fail)
    return state


def test_a_full_disk_at_publishing_is_told_and_once_there_is_room_the_run_goes_on(tmp_path, server, monkeypatch):
    feed = make_feed_with(server, tmp_path)
    disk = full_disk(monkeypatch, "version_1")
    feed.next_batch(0)
    with pytest.raises(GeneratorError, match=r"version_1.*: No space left on device\. Make room"):
        feed.publish(weights(1))
    assert [path.name for path in tmp_path.glob("weights/*/*")] == ["version_0"]
    disk["is_full"] = False
    feed.publish(weights(1))
    assert feed.next_batch(1).step == 1


def test_a_full_disk_at_writing_weights_is_told_by_safetensors_too(tmp_path, server, monkeypatch):
    from safetensors import SafetensorError

    def fail(*arguments, **keywords):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    feed = make_feed(tmp_path)
    monkeypatch.setattr("surogate.rl.weight_files.save_file", fail)
    with pytest.raises(GeneratorError, match="No space left on device"):
        feed.publish(weights(0))
    assert not list(tmp_path.glob("weights/*/*"))


def test_a_full_disk_at_answering_is_waited_out(tmp_path, server, monkeypatch, caplog):
    feed = make_feed_with(server, tmp_path)
    disk = full_disk(monkeypatch, "answer.json")
    threading.Timer(0.1, disk.update, [{"is_full": False}]).start()
    batch = feed.next_batch(0)
    assert batch.step == 0
    assert "answer.json could not be written: No space left on device" in caplog.text


def test_a_full_disk_at_asking_is_told_and_leaves_no_draft(tmp_path, server, monkeypatch):
    feed = make_feed_with(server, tmp_path)
    disk = full_disk(monkeypatch, "call.json")
    with pytest.raises(GeneratorError, match=r"call\.json could not be written: No space left on device"):
        feed.next_batch(0)
    assert not [path for path in tmp_path.glob("calls/*/.*")]
    disk["is_full"] = False
    assert feed.next_batch(0).step == 0
    disk["is_full"] = True
    feed.close()  # no more than a warning


def test_an_environment_that_differs_from_the_checkpoint_is_refused(tmp_path, servers):
    old = servers()
    feed = make_feed_with(old, tmp_path)
    ledger = feed.next_batch(0).ledger
    old.kill()
    servers(
        lambda: RolloutService(make_orchestrator(GatedGenerator(), 1, [ListedEnvironment("b", 5)]), no_evaluation())
    )
    with pytest.raises(CheckpointError, match="was made with the environments"):
        feed.publish(weights(1))
    assert ledger["pool"]["sizes"] == {"a": SIZE}


def no_evaluation():
    return make_service(GatedGenerator())._evaluation
