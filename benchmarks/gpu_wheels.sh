#!/usr/bin/env bash
# Fetch the wheels that benchmarks/gpu.py needs on a machine with a GPU but without a network:
#
#     benchmarks/gpu_wheels.sh [FOLDER]        # gpu-wheels by default
#
# The machine is assumed to have Python 3.12 on x86-64 Linux with torch 2.11 for CUDA, triton 3.6,
# numpy, scipy, matplotlib, safetensors, rich, pyyaml, jinja2, pip and pytest. What travels, the files of the
# checkout and the wheels, must stay below 64 MiB.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-gpu-wheels}
packages=(ase vesin spglib platformdirs shtab)
limit=$((64 * 1024 * 1024))
mkdir -p "$folder"
platforms=()
for glibc in 39 34 28 27 26 24 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
"${PYTHON:-python3}" -m pip download -q --dest "$folder" --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform any "${packages[@]}"
tree=$(cd "$root" && git ls-files -z | xargs -0 stat -c %s | awk '{n += $1} END {print n}')
wheels=$(cat "$folder"/*.whl | wc -c)
ls "$folder"
echo "checkout $((tree / 1024)) KiB, wheels $((wheels / 1024)) KiB, of $((limit / 1024)) KiB"
if ((tree + wheels > limit)); then
    echo "too large by $(((tree + wheels - limit) / 1024)) KiB" >&2
    exit 1
fi
echo "$(((limit - tree - wheels) / 1024)) KiB are left, for a checkpoint with 24 layers, say"
