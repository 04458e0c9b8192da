"""What mnv3 opens, optimises and evaluates answers any number of threads at once as it answers one."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exports import exported, net

import mnv3
from mnv3.deploy import FORMATS, load, optimize
from mnv3.deploy.fastest import CANDIDATES
from mnv3.deploy.packages import quiet
from mnv3.deploy.runtime import Pool
from mnv3.layers import evaluating

THREADS, CALLS = 4, 60
SLOW = ("tflite", "executorch", "compile")


def each(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(8, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def wrong_answers(run, pictures):
    """Of THREADS times CALLS, each for a picture of its own turn."""
    with torch.inference_mode():
        expected = [net()(x) for x in pictures]
    start = threading.Barrier(THREADS)

    def work(thread):
        start.wait()
        wrong = 0
        for i in range(CALLS):
            k = (thread + i) % len(pictures)
            with torch.inference_mode():
                wrong += not torch.allclose(run(pictures[k]), expected[k], rtol=0, atol=1e-3)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


@pytest.mark.parametrize("to", each([name for name in FORMATS if name != "coreml"]))
def test_exported_files(pictures, to):
    assert wrong_answers(load(exported(to)[0]), pictures) == 0


@pytest.mark.parametrize("candidate", each([name for name in CANDIDATES if name not in FORMATS]))
def test_optimized_models(pictures, candidate):
    fast = optimize(net(), candidates=[candidate])
    assert wrong_answers(fast, pictures) == 0
    assert wrong_answers(fast, torch.cat((pictures, pictures[:, :, :, :24]), 3)) == 0, "of another shape"


def test_files_opened_at_once(pictures):
    """With the terminal as it was afterwards."""
    (file, _), before = exported("torchscript"), [os.fstat(number).st_ino for number in (1, 2)]
    with ThreadPoolExecutor(THREADS) as pool, torch.inference_mode():
        for model in pool.map(load, [file] * 8):
            torch.testing.assert_close(model(pictures[0]), net()(pictures[0]), rtol=0, atol=1e-4)
    assert [os.fstat(number).st_ino for number in (1, 2)] == before


def test_quiet_until_the_last_is_done(monkeypatch):
    monkeypatch.setenv("CI", "as it was")
    before = [os.fstat(number).st_ino for number in (1, 2)]
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert [os.fstat(number).st_ino for number in (1, 2)] != before
    assert os.environ["CI"] == "true"
    second.__exit__(None, None, None)
    assert [os.fstat(number).st_ino for number in (1, 2)] == before
    assert os.environ["CI"] == "as it was"


def test_evaluation_ends_with_the_last_thread(pictures):
    """A model in training mode, as create_model gives it, and with a frozen layer."""
    model = mnv3.create_model("mnv3_small_cifar", width=0.5, drop_rate=0.5)
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        expected = model(pictures[0])
    one_in, two_in, found = threading.Event(), threading.Event(), []

    def one():
        with evaluating(model):
            one_in.set()
            two_in.wait(10)

    def two():
        one_in.wait(10)
        with evaluating(model):
            two_in.set()
            first.join(10)
            found.append(model(pictures[0]))

    first, second = threading.Thread(target=one), threading.Thread(target=two)
    first.start()
    second.start()
    second.join(20)
    assert torch.equal(found[0], expected)
    assert [module.training for module in model.modules()] == modes


def test_a_pool_makes_what_it_needs():
    made = []
    pool = Pool(lambda: made.append(len(made)) or made[-1])
    with pool.one() as a, pool.one() as b:
        assert {a, b} == {0, 1}
    with pytest.raises(KeyError), pool.one():
        raise KeyError
    with pool.one() as a, pool.one() as b:
        assert {a, b} == {0, 1}, "also after an error"
