import pytest
from onnxruntime.quantization import QuantType

from handoff.qdq_models import quantized_net


@pytest.fixture(scope="session")
def nets(tmp_path_factory):
    """The small net, int8 for the N6 and uint8 for x86, in a folder with a space."""
    folder = tmp_path_factory.mktemp("two nets")
    return {
        "stm32n6": quantized_net(folder / "s8", QuantType.QInt8),
        "ort-x86": quantized_net(folder / "u8", QuantType.QUInt8),
    }
