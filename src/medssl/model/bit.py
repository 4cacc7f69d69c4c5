"""BiT's ResNet v2: pre-activation, group norm, weight-standardised convolutions (Kolesnikov et al. 2020).

The network is timm's, built without any download; this module gives it the form of the other encoders.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor

from medssl.architecture import BOTTLENECK_LAYERS
from medssl.model.encoder import Encoder

LAYERS: Final = BOTTLENECK_LAYERS
# BiT's code scales [0, 1] to [-1, 1].
MEAN: Final = (0.5,)
STD: Final = (0.5,)
# Of weight standardisation, as timm sets it for BiT's weights; BiT's own code has 1e-10, below float32's rounding here.
STANDARDISATION_EPS: Final = 1e-8


class BiT(Encoder):
    """BiT's network up to the global average pool, group norm and ReLU before it included.

    Attributes:
        representation_dim: D, 2048 x width.

    References:
        Kolesnikov et al. 2020, Big Transfer, section 3.1; He et al. 2016, Identity Mappings.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: float,
        in_channels: int = 3,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        """Build a network with freshly drawn weights from torch's generator.

        Args:
            depth: 50, 101 or 152.
            width: Multiplies every filter count; a whole number, 1 to 4 in the paper.
            in_channels: Of the weights; 3 for all that are published.
            mean: See `Encoder`; by default images are scaled to [-1, 1].
            std: See `Encoder`.

        Raises:
            ValueError: On a depth or width that BiT does not have.
        """
        if depth not in LAYERS or width < 1 or width != int(width):
            raise ValueError(f"BiT has depths {sorted(LAYERS)} and whole widths, found {depth} and {width:g}")
        super().__init__(in_channels=in_channels, mean=mean, std=std)
        self.network = ResNetV2(
            layers=list(LAYERS[depth]),
            num_classes=0,
            in_chans=in_channels,
            width_factor=int(width),
            stem_type="fixed",
            conv_layer=partial(StdConv2d, eps=STANDARDISATION_EPS),
        )
        self.representation_dim = self.network.num_features

    def represent(self, images_NCHW: Tensor) -> Tensor:
        """Representations, shape (N, D); each side is divided by 32 before the average."""
        representation_ND: Tensor = self.network(images_NCHW)
        return representation_ND
