#!/bin/sh
# Make a virtual environment with everything that services, training and tests need: `sh deploy/install.sh .venv`.
# On a machine with an NVIDIA driver the `gpu` extra is installed, else the `cpu` extra with the CPU build of torch: the
# files that deploy/requirements/ names by their SHA-256, and no others.
set -eu
venv=$1
python=${PYTHON:-python3.11}
torch=2.13.0

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "rlhf-mesh needs Python 3.11; '$python' is not it. Install it, or name it: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"

install() {
    $pip install --require-hashes --no-deps -r "deploy/requirements/$1.txt"
    # Its build uses what has just been installed.
    $pip install --no-deps --no-build-isolation -e .
}

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    install gpu
    exit 0
fi
# PyPI's torch for Linux is a CUDA build of several GB. The CPU build is taken from where pip looks anyway, else from
# PyTorch's own index; it is the one file without a hash here.
if ! "$venv/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$torch')" 2>/dev/null; then
    $pip install --no-deps "torch==$torch+cpu" ||
        $pip install --no-deps "torch==$torch+cpu" --index-url https://download.pytorch.org/whl/cpu ||
        $pip install --no-deps "torch==$torch"
fi
install cpu
