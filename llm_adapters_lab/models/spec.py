"""The values that a spec may give for how a base is loaded."""

from __future__ import annotations

from typing import Literal

DeviceMap = Literal["none", "auto"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Quantization = Literal["none", "int8", "nf4", "nf4-double"]
