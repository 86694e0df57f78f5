"""Other processors without a board: ONNX Runtime under QEMU user emulation.

The real aarch64 wheel of ONNX Runtime on emulated Cortex cores, and this machine's own x86 one on
an emulated processor without VNNI. Says whether answers are equal, nothing about speed.
"""
