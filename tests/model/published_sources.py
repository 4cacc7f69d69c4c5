"""Networks named and wired as those who publish weights name and wire them, and TensorFlow's files, byte by byte."""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck

LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with weights, statistics and norms that differ everywhere, and with output that follows its input."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1:
            is_scale = name.endswith(("weight", "running_var"))
            uniform = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(uniform + 0.5 if is_scale else 0.2 * uniform - 0.1)
        elif tensor.ndim:
            fan_in = tensor[0].numel()
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return module.eval()


def same_pool(x: Tensor) -> Tensor:
    """TensorFlow's 3x3 max-pool of stride 2 with padding "SAME", for even sides."""
    return functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, stride=2)


class WideResNet50(nn.Module):
    """SimCLR v1 in torch: torchvision's names and blocks, every filter count times the width."""

    def __init__(self, filters: int, pool: Callable[[Tensor], Tensor] = same_pool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, filters, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.pool = pool
        channels = filters
        for group, blocks in enumerate(LAYERS[50]):
            planes, stride, layer = filters * 2**group, 1 if group == 0 else 2, []
            for number in range(blocks):
                down = None
                if number == 0:
                    conv = nn.Conv2d(channels, 4 * planes, 1, stride, bias=False)
                    down = nn.Sequential(conv, nn.BatchNorm2d(4 * planes))
                layer.append(Bottleneck(channels, planes, stride if number == 0 else 1, down))
                channels = 4 * planes
            self.add_module(f"layer{group + 1}", nn.Sequential(*layer))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        for group in range(4):
            x = self.get_submodule(f"layer{group + 1}")(x)
        return x.mean(dim=(2, 3))


class _Normed(nn.Sequential):
    def __init__(self, channels: int, *, relu: bool = True) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU() if relu else nn.Identity())


class _Projection(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
        self.bn = _Normed(out, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.shortcut(x))
        return normed


class _V2Block(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        self.projection = _Projection(channels, 4 * planes, stride) if projects else nn.Identity()
        self.net = nn.Sequential(
            nn.Conv2d(channels, planes, 1, bias=False),
            _Normed(planes),
            nn.Conv2d(planes, planes, 3, stride, 1, bias=False),
            _Normed(planes),
            nn.Conv2d(planes, 4 * planes, 1, bias=False),
            _Normed(4 * planes, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.projection(x) + self.net(x))


class _V2Group(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, num_blocks: int) -> None:
        super().__init__()
        blocks = [_V2Block(channels, planes, stride, projects=True)]
        blocks += [_V2Block(4 * planes, planes, 1, projects=False) for _ in range(num_blocks - 1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return same_pool(x)


class SimclrV2ResNet50(nn.Module):
    """SimCLR v2 in torch, without selective kernels."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, filters, 7, 2, 3, bias=False), _Normed(filters), _Same())
        channels, groups = filters, []
        for group, num_blocks in enumerate(LAYERS[50]):
            planes = filters * 2**group
            groups.append(_V2Group(channels, planes, 1 if group == 0 else 2, num_blocks))
            channels = 4 * planes
        self.net = nn.Sequential(stem, *groups)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        representation: Tensor = self.net(x).mean(dim=(2, 3))
        return representation


def contrastive_head(dim: int, num_layers: int) -> nn.Module:
    """SimCLR v2's projection head in torch: the last shift is zero and never trained."""
    layers: list[nn.Module] = []
    for number in range(num_layers):
        is_last = number == num_layers - 1
        out = 128 if is_last else dim
        layers += [nn.Linear(dim, out, bias=False), nn.BatchNorm1d(out), *([] if is_last else [nn.ReLU()])]
    head = nn.Module()
    head.layers = nn.ModuleList(layers)
    scrambled(head)
    nn.init.zeros_(layers[-1].bias)
    return head


def simclr_variables(network: WideResNet50) -> dict[str, np.ndarray]:
    """The network as SimCLR's code in TensorFlow 1 names its variables: by the order in which they are made."""
    variables: dict[str, np.ndarray] = {}
    order = [(network.conv1, network.bn1)]
    for group in range(4):
        for block in network.get_submodule(f"layer{group + 1}"):
            if block.downsample is not None:
                order.append((block.downsample[0], block.downsample[1]))
            order += [(block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3)]
    for number, (conv, norm) in enumerate(order):
        suffix = f"_{number}" if number else ""
        variables[f"base_model/conv2d{suffix}/kernel"] = conv.weight.detach().permute(2, 3, 1, 0).numpy()
        variables |= _norm_variables(f"base_model/batch_normalization{suffix}", norm)
    return variables


def simclr_tf2_variables(network: WideResNet50) -> dict[str, np.ndarray]:
    """The network as TensorFlow 2 names the variables of SimCLR's code: by where they are kept."""
    model = "model/resnet_model"
    places = [(f"{model}/initial_conv_relu_max_pool/0", network.conv1)]
    norms = [(f"{model}/initial_conv_relu_max_pool/2", network.bn1)]
    for group in range(4):
        for number, block in enumerate(network.get_submodule(f"layer{group + 1}")):
            where = f"{model}/block_groups/{group}/layers/{number}"
            if block.downsample is not None:
                places.append((f"{where}/projection_layers/0", block.downsample[0]))
                norms.append((f"{where}/projection_layers/1", block.downsample[1]))
            for at, (conv, norm) in {
                0: (block.conv1, block.bn1),
                3: (block.conv2, block.bn2),
                6: (block.conv3, block.bn3),
            }.items():
                places.append((f"{where}/conv_relu_dropblock_layers/{at}", conv))
                norms.append((f"{where}/conv_relu_dropblock_layers/{at + 1}", norm))
    variables = {f"{p}/conv2d/kernel": c.weight.detach().permute(2, 3, 1, 0).numpy() for p, c in places}
    for place, norm in norms:
        variables |= _norm_variables(f"{place}/bn", norm)
    return {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": value for name, value in variables.items()}


def head_variables(head: nn.Module) -> dict[str, np.ndarray]:
    """A projection head as SimCLR's code in TensorFlow 1 names it; its last batch norm has no shift."""
    variables: dict[str, np.ndarray] = {}
    linears = [m for m in head.layers if isinstance(m, nn.Linear)]
    norms = [m for m in head.layers if isinstance(m, nn.BatchNorm1d)]
    for number, (linear, norm) in enumerate(zip(linears, norms, strict=True)):
        where = f"head_contrastive/nl_{number}"
        variables[f"{where}/dense/kernel"] = linear.weight.detach().T.numpy()
        variables |= _norm_variables(f"{where}/batch_normalization", norm)
    del variables[f"head_contrastive/nl_{len(norms) - 1}/batch_normalization/beta"]
    return variables


def _norm_variables(where: str, norm: nn.Module) -> dict[str, np.ndarray]:
    torchs = {"gamma": norm.weight, "beta": norm.bias, "moving_mean": norm.running_mean}
    return {f"{where}/{n}": t.detach().numpy() for n, t in {**torchs, "moving_variance": norm.running_var}.items()}


# TensorFlow's files.


def slow_crc32c(data: bytes) -> int:
    """By the definition, a bit at a time, each byte's eight bits looked up."""
    table = []
    for register in range(256):
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
        table.append(register)
    register = 0xFFFFFFFF
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    value = slow_crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a message; checksums (6) have a fixed width."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3 | 5) + struct.pack("<I", value) if number == 6 else varint(number << 3) + varint(value)


def block(entries: Sequence[tuple[bytes, bytes]], *, interval: int = 16) -> bytes:
    """A block of a table, keys as differences from the one before, whole every `interval` keys."""
    out, restarts, before = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(entries: Sequence[tuple[bytes, bytes]], *, per_block: int = 40, compression: int = 0) -> bytes:
    """A table of sorted entries."""
    parts = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    return table_of([(part[-1][0], block(part)) for part in parts], compression=compression)


def table_of(blocks: Sequence[tuple[bytes, bytes]], *, compression: int = 0) -> bytes:
    """A table of blocks, each with its last key."""
    out, handles = bytearray(), []

    def add(content: bytes) -> bytes:
        handle = varint(len(out)) + varint(len(content))
        out.extend(content + bytes([compression]) + struct.pack("<I", masked(content + bytes([compression]))))
        return handle

    for last_key, content in blocks:
        handles.append((last_key, add(content)))
    meta = add(block([]))
    footer = meta + add(block(handles, interval=1))
    return bytes(out) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(value: np.ndarray, offset: int, shard: int = 0, dtype: int = 1, size: int | None = None) -> bytes:
    """What the index says of a tensor; a `size` of its own lies."""
    data = np.ascontiguousarray(value).tobytes()
    sides = b"".join(field(2, field(1, side)) for side in value.shape)
    place = field(4, offset) + field(5, len(data) if size is None else size)
    return field(1, dtype) + field(2, sides) + field(3, shard) + place + field(6, masked(data))


def write_checkpoint(prefix: Path, variables: Mapping[str, np.ndarray], *, num_shards: int = 1) -> Path:
    """Write a checkpoint, its variables in turn in one of the files of values, with a step that is an integer."""
    data = [bytearray() for _ in range(num_shards)]
    entries = [(b"", field(1, num_shards) + field(3, field(1, 1)))]
    everything = {**variables, "global_step": np.array(7, np.int64)}
    for number, (name, value) in enumerate(sorted(everything.items())):
        shard = number % num_shards
        dtype = {"float32": 1, "float16": 19, "int64": 9}[value.dtype.name]
        entries.append((name.encode(), entry(value, len(data[shard]), shard, dtype)))
        data[shard] += np.ascontiguousarray(value).tobytes()
    for number, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{num_shards:05d}").write_bytes(content)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries))
    return prefix
