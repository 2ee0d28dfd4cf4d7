"""A disk that loses what was not synced, or that fails: a library of a few lines of C between taud and its disk.

It is loaded with LD_PRELOAD.  `TAU_TEST_SHADOW` names a directory that gets a copy of each file below the home at each
of its syncs, which is what a power loss would leave; names change there as they do here.  The process dies just before
its sync number `TAU_TEST_DIE`.  While the file `TAU_TEST_TROUBLE` exists, what it names fails: `sync` or `write`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int in_trouble(const char *what) {
    char word[16] = "", *path = getenv("TAU_TEST_TROUBLE");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 0;
    if (!fgets(word, sizeof word, file)) word[0] = 0;
    fclose(file);
    return !strcmp(word, what);
}

static int shadow_of(const char *path, char *place) {
    char *home = getenv("TAU_HOME"), *shadow = getenv("TAU_TEST_SHADOW");
    if (!home || !shadow || strncmp(path, home, strlen(home))) return 0;
    snprintf(place, PATH_MAX, "%s%s", shadow, path + strlen(home));
    for (char *at = place + 1; (at = strchr(at, '/')); at++) {
        *at = 0;
        mkdir(place, 0700);
        *at = '/';
    }
    return 1;
}

static void copy(int from) {
    int (*real)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    char link[64], path[PATH_MAX], place[PATH_MAX], part[PATH_MAX + 32], block[1 << 16];
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", from);
    ssize_t length = readlink(link, path, sizeof path - 1), got;
    if (length < 0 || fstat(from, &about) || !S_ISREG(about.st_mode)) return;
    path[length] = 0;
    if (!shadow_of(path, place)) return;
    // Beside it, and then in its place: who dies meanwhile, by the sync of another thread, leaves the older copy whole.
    snprintf(part, sizeof part, "%s.%lx", place, (unsigned long)&about);
    int readable = open(path, O_RDONLY), to = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    for (off_t at = 0; (got = pread(readable, block, sizeof block, at)) > 0; at += got)
        if (write(to, block, got) != got) abort();
    close(readable);
    close(to);
    if (real(part, place)) abort();
}

static int synced(int file, const char *name) {
    static int count;
    char *fatal = getenv("TAU_TEST_DIE");
    if (fatal && ++count == atoi(fatal)) kill(getpid(), SIGKILL);
    if (in_trouble("sync")) { errno = EIO; return -1; }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int answer = real(file);
    if (!answer) copy(file);
    return answer;
}

int fsync(int file) { return synced(file, "fsync"); }
int fdatasync(int file) { return synced(file, "fdatasync"); }

int rename(const char *old, const char *new) {
    char from[PATH_MAX], to[PATH_MAX];
    int (*real)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    int answer = real(old, new);
    if (!answer && shadow_of(old, from) && shadow_of(new, to)) real(from, to);
    return answer;
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    if (in_trouble("write")) { errno = EROFS; return -1; }
    return real(file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) { return pwrite64(file, bytes, count, at); }
"""


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """The library; skips where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("needs a C compiler, and Linux")
    with tempfile.TemporaryDirectory(prefix="tau-disk-") as folder:
        library = Path(folder) / "disk.so"
        command = [compiler, "-shared", "-fPIC", "-w", "-o", library, "-x", "c", "-", "-ldl"]
        done = subprocess.run(command, input=SOURCE, capture_output=True, text=True, timeout=60)
        if done.returncode:
            pytest.skip(f"the compiler does not compile: {done.stderr[-200:]}")
        yield library
