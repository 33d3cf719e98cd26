import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Signals are so short that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
