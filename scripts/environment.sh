# Sourced by the scripts beside it, with the repository root as working directory: makes a virtual environment inside the
# repository and builds Windlass into it, and does neither again while nothing has changed. POSIX sh.

started=$(date +%s)
user_cxx=${CXX:-}

# Other people's settings must not leak in: a PYTHONPATH would shadow the installed package.
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1

headline() { printf '\n== %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

elapsed() { echo "$(($(date +%s) - started)) s"; }

# quietly MESSAGE COMMAND...: hides what the command says unless it fails, then shows the end of it and MESSAGE.
quietly() {
    quietly_message=$1
    shift
    if ! "$@" >"$venv/log" 2>&1; then
        tail -n 40 "$venv/log" >&2
        die "$quietly_message (the whole output: $venv/log)"
    fi
}

# Sets $python and $version: a Python >= 3.10 that can make virtual environments and compile extensions.
find_python() {
    problem="no Python found: install Python 3.10 or newer, or name one with PYTHON=/path/to/python"
    new_enough=
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            [ "$new_enough" ] || problem="Python $version ($candidate) is too old: install Python 3.10 or newer, or name one with PYTHON=/path/to/python"
        elif ! "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            new_enough=yes
            problem="Python $version ($candidate) cannot make virtual environments: install its venv module (on Debian and Ubuntu the package python$version-venv)"
        elif ! "$candidate" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; then
            new_enough=yes
            problem="Python $version ($candidate) has no header files: install them (on Debian and Ubuntu the package python$version-dev)"
        else
            python=$candidate
            return
        fi
    done
    die "$problem"
}

# Sets and exports CXX: a compiler that understands C++20.
find_compiler() {
    problem="no C++ compiler found: install g++ or clang++ (on Debian and Ubuntu the package g++), or name one with CXX=/path/to/compiler"
    for candidate in ${user_cxx:+"$user_cxx"} c++ g++ clang++; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if printf '#include <bit>\n#include <span>\nint main() { return std::popcount(0u); }\n' |
            "$candidate" -std=c++20 -fsyntax-only -x c++ - >/dev/null 2>&1; then
            CXX=$candidate
            export CXX
            return
        fi
        problem="the C++ compiler $candidate does not understand C++20: install a newer one, or name one with CXX=/path/to/compiler"
    done
    die "$problem"
}

# make_environment NAME: sets $venv and $bin, a virtual environment with the build tools in it.
make_environment() {
    venv=$(pwd)/$1
    bin=$venv/bin
    # An environment remembers absolute paths, so one that was moved or left half made is made again.
    if [ "$(cat "$venv/made-at" 2>/dev/null)" != "$venv" ] || ! "$bin/python" -c 'import pip' 2>/dev/null; then
        find_python
        find_compiler
        headline "Making a virtual environment in $1 with Python $version"
        rm -rf "$venv"
        mkdir "$venv"
        quietly "could not make a virtual environment" "$python" -m venv "$venv"
        quietly "could not upgrade pip" "$bin/python" -m pip install --quiet --upgrade "pip>=25.1"
        printf '%s\n' "$venv" >"$venv/made-at"
    fi
    # In the environment itself, because pip's isolated builds would compile everything again every time.
    install_group build
}

# install_group NAME: a dependency group of pyproject.toml.
install_group() {
    wanted=$(cksum <pyproject.toml)
    if [ "$(cat "$venv/group-$1" 2>/dev/null)" != "$wanted" ]; then
        headline "Installing the $1 tools"
        quietly "could not install the $1 tools" "$bin/python" -m pip install --quiet --group "$1"
        printf '%s\n' "$wanted" >"$venv/group-$1"
    fi
}

# install_windlass EXTRAS DEFINITION...: the package as it is in the tree, with optional dependencies such as '[oracle]', or
# '', and with definitions for CMake.
install_windlass() {
    extras=$1
    shift
    wanted=$(
        printf '%s %s %s %s\n' "$user_cxx" "${CXXFLAGS:-}" "$extras" "$*"
        find CMakeLists.txt LICENSE README.md csrc pyproject.toml src -type f ! -name '*.pyc' ! -name '*.so' \
            -exec cksum {} + | LC_ALL=C sort
    )
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
        find_compiler
        headline "Building and installing Windlass"
        rm -f "$venv/installed"
        for definition; do
            shift
            set -- "$@" "--config-settings=cmake.define.$definition"
        done
        quietly "could not build Windlass" "$bin/python" -m pip install --quiet --no-build-isolation \
            --config-settings=build-dir="$venv/build" "$@" ".$extras"
        printf '%s\n' "$wanted" >"$venv/installed"
    fi
}
