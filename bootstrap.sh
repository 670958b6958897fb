#!/usr/bin/env bash
# Sets up .venv: the pinned packages, ROS 2 (the sourced one, else rclpy from the package index) and
# our messages and services compiled for it. A step whose inputs did not change is skipped; run again
# to repair.
#
#   UNSCENE_REQUIRE_ROS=1   stops where ROS 2 cannot be had, instead of going on without it
#   PIP_EXTRA_INDEX_URL     one more package index; https://download.pytorch.org/whl/cpu has a torch
#                           without CUDA, which saves gigabytes on a machine without a GPU
set -euo pipefail
cd "$(dirname "$0")"

repository=$(pwd -P)
venv=$repository/.venv
python=$venv/bin/python
ros=${ROS_DISTRO:-} # empty: no ROS 2 is sourced

# Another virtual environment with ROS wheels leaves these behind; here they would be wrong.
if [ -n "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
fi

main() {
  make_venv
  once packages install_packages requirements.txt setup.py unscene_ros/models/backends/*.[ch] ||
    fail "installing the packages failed, see above; running again goes on from there"
  once ros install_ros bootstrap.sh requirements-ros.txt CMakeLists.txt package.xml \
    msg/*.msg srv/*.srv test/stand_ins/*/msg/*.msg || go_on_without_ros
}

say() { echo "setup: $*" >&2; }

fail() {
  say "$*"
  exit 1
}

go_on_without_ros() {
  local remedy="source a ROS 2 installation, or use x86_64 Linux with Python 3.10 to 3.12"
  [ "${UNSCENE_REQUIRE_ROS:-}" != 1 ] || fail "ROS 2 is required here but cannot be had: $remedy"
  say "going on without ROS 2, so the nodes will not start: $remedy"
}

once() { # once NAME COMMAND FILE...: runs COMMAND unless it succeeded before with the same FILEs
  local stamp=$venv/.$1 inputs
  inputs=$({ echo "$ros" && sha256sum "${@:3}"; } | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" != "$inputs" ] || return 0
  rm -f "$stamp"
  "$2" && echo "$inputs" >"$stamp"
}

make_venv() { # keeps a venv that works, lies where it was made and fits the ROS in use
  local base=$python share_system=false
  [ -z "$ros" ] || share_system=true
  "$python" -m pip --version >/dev/null 2>&1 && grep -qF "$venv" "$venv/bin/activate" &&
    grep -q "system-site-packages = $share_system" "$venv/pyvenv.cfg" || base=$(find_python)
  install_system_packages "$base"
  [ "$base" != "$python" ] || return 0
  say "making .venv with $base${ros:+ and ROS 2 $ros}"
  "$base" -m venv --clear ${ros:+--system-site-packages} "$venv"
}

find_python() { # prints the first Python that serves, together with the sourced ROS if there is one
  local candidate
  for candidate in ${ros:+/usr/bin/python3} python3 python3.12 python3.11 python3.10; do
    if "$candidate" -c "import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12)" 2>/dev/null &&
      { [ -z "$ros" ] || "$candidate" -c "import rclpy" 2>/dev/null; }; then
      command -v "$candidate"
      return
    fi
  done
  fail "needs Python 3.10, 3.11 or 3.12${ros:+ that can import the rclpy of ROS 2 $ros};" \
    "python3 is $(python3 --version 2>/dev/null || echo missing)"
}

install_system_packages() {
  local packages
  packages=$(missing_system_packages "$1" | xargs)
  [ -n "$packages" ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "system packages are missing, please run: sudo apt-get install $packages"
  fi
  say "installing the system packages $packages"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # one word per package
  apt-get update -qq && apt-get install -qq -y --no-install-recommends $packages >/dev/null ||
    fail "apt-get could not install $packages"
}

missing_system_packages() { # missing_system_packages PYTHON: one apt package a line
  local tool
  for tool in gcc g++ make; do
    command -v "$tool" >/dev/null || echo "$tool"
  done
  "$1" - <<'PYTHON'
import ctypes, importlib.util, pathlib, sys, sysconfig

python = "python%d.%d" % sys.version_info[:2]
if not importlib.util.find_spec("ensurepip"):
    print(python + "-venv")
if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    print(python + "-dev")
for library, package in {  # what Open3D loads
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libudev.so.1": "libudev1",
    "libidn2.so.0": "libidn2-0",
    "libgomp.so.1": "libgomp1",
}.items():
    try:
        ctypes.CDLL(library)
    except OSError:
        print(package)
PYTHON
}

install_packages() {
  say "installing requirements.txt into .venv (some minutes the first time)"
  # The messages of every ROS 2 for these Pythons were compiled against numpy 1.
  sed "${ros:+s/^numpy==.*/numpy==1.26.4/}" requirements.txt >"$venv/requirements.txt" &&
    pip_install -r "$venv/requirements.txt" &&
    pip_install --quiet --no-deps --no-build-isolation --editable .
}

pip_install() { "$python" -m pip install --disable-pip-version-check "$@"; }

install_ros() {
  local package
  [ -n "$ros" ] || install_ros_wheels || return
  say "compiling the messages"
  rm -rf "$venv/messages" "$venv/build"
  compile_messages . -DINSTALL_PYTHON=OFF || return
  for package in tf2_msgs vision_msgs; do # which the package index does not have
    "$python" -c "import $package" 2>/dev/null || compile_messages "test/stand_ins/$package" || return
  done
  rm -rf "$venv"/messages/*.egg-info # or pip would take it for an installed unscene_ros
  write_environment
}

install_ros_wheels() {
  [ "$(uname -m)" = x86_64 ] || return
  say "no ROS 2 is sourced: installing rclpy and the message generators from the package index"
  pip_install --quiet -r requirements-ros.txt || return
  # The wheels' CMake files name include folders of the machine that built them.
  "$python" - <<'PYTHON'
import pathlib, re, sys, sysconfig

import numpy

for file in pathlib.Path(sys.prefix, "share").glob("*/cmake/*Export.cmake"):
    text = re.sub(r'/opt/python/[^;"]*/numpy/_core/include', numpy.get_include(), file.read_text())
    text = re.sub(r'/opt/python/[^;"]*/include/python3\.\d+', sysconfig.get_path("include"), text)
    file.write_text(text)
PYTHON
}

compile_messages() { # compile_messages PACKAGE [CMAKE OPTION...]
  local build log
  build=$venv/build/$(basename "$(realpath "$1")") log=$build.log
  mkdir -p "$venv/build"
  (
    export PATH=$venv/bin:$PATH
    export AMENT_PREFIX_PATH=$venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
    export CMAKE_PREFIX_PATH=$venv${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
    # In site-packages the generated unscene_ros would hide the sources of the same name.
    cmake -S "$1" -B "$build" -DCMAKE_INSTALL_PREFIX="$venv" -DPYTHON_INSTALL_DIR=messages \
      -DPython3_EXECUTABLE="$python" -DBUILD_TESTING=OFF "${@:2}" &&
      cmake --build "$build" --target install --parallel "$(nproc)"
  ) >"$log" 2>&1 && return
  tail -n 30 "$log" >&2
  say "compiling the messages of $1 failed, the whole log is $log"
  return 1
}

write_environment() { # what ROS processes need, set whenever the Python of this venv starts
  local site_packages
  site_packages=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))") || return
  cat >"$site_packages/unscene_ros_environment.py" <<PYTHON
import os
import sys


def prepend(name, folder):
    folders = [path for path in os.environ.get(name, "").split(":") if path]
    os.environ[name] = ":".join([folder, *(path for path in folders if path != folder)])
    return folder not in folders


# Fast DDS 2 has another name than 3, which warns of the old one.
prefix = "FASTRTPS" if os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy") else "FASTDDS"
os.environ.setdefault(prefix + "_DEFAULT_PROFILES_FILE", "$repository/config/fastdds.xml")
prepend("AMENT_PREFIX_PATH", "$venv")
if prepend("LD_LIBRARY_PATH", "$venv/lib"):  # the loader reads it only when a process starts
    os.execv(sys.executable, sys.orig_argv)
PYTHON
  printf '%s\n' "$venv/messages" "import unscene_ros_environment" \
    >"$site_packages/unscene_ros_environment.pth"
}

main
