"""What every encoder offers, whatever its family: images in [0, 1] go in, one representation each comes out.

Shape suffixes: N images, C channels, H and W pixels, D representation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Base of the encoders: brings images to the scale of the weights, then calls `represent`.

    Mean and deviation are not part of the state: a file of weights holds weights alone, the study holds the rest.

    Attributes:
        representation_dim: D.
    """

    representation_dim: int
    _mean_C11: Tensor
    _std_C11: Tensor

    def __init__(self, *, in_channels: int, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        """Remember how images are brought to the scale of the weights.

        Args:
            in_channels: Of the weights. Images of one channel are repeated for weights of three.
            mean: Subtracted from each channel of an image in [0, 1]; empty: the image stays as it is.
            std: By which each channel is then divided; as many as `mean`, one for all or one a channel.

        Raises:
            ValueError: On lengths that do not fit, or a deviation that is not positive.
        """
        super().__init__()
        if len(mean) != len(std) or len(mean) not in (0, 1, in_channels) or any(value <= 0 for value in std):
            raise ValueError(
                f"mean {list(mean)} and std {list(std)} do not fit {in_channels} channels; "
                "give one positive std and one mean a channel, or neither"
            )
        self._in_channels = in_channels
        self._is_scaled = bool(mean)
        for name, values in (("_mean_C11", mean), ("_std_C11", std)):
            # On the CPU even where the network is built without values: no file of weights will fill them.
            scale_C11 = torch.tensor(list(values), dtype=torch.float32, device="cpu").reshape(-1, 1, 1)
            self.register_buffer(name, scale_C11, persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Representations, shape (N, D), of images in [0, 1]."""
        if images_NCHW.shape[1] == 1 and self._in_channels > 1:
            images_NCHW = images_NCHW.expand(-1, self._in_channels, -1, -1)
        if self._is_scaled:
            images_NCHW = (images_NCHW - self._mean_C11) / self._std_C11
        return self.represent(images_NCHW)

    def represent(self, images_NCHW: Tensor) -> Tensor:
        """Representations, shape (N, D), of images on the scale of the weights."""
        raise NotImplementedError
