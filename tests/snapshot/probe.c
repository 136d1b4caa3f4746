/*
 * What this machine can do at best, for scripts/bench snapshot: the work of a
 * background snapshot without QEMU.
 *
 *   probe FILE MIB
 *
 * Memory of MIB MiB is write-protected; a thread serves write faults by
 * copying 4 KiB and un-protecting it, and a scan copies runs of pages into a
 * buffer, un-protects each run with one ioctl and writes it to FILE.  Prints a
 * NAME VALUE line per figure; exit status 77: this kernel or user may not.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define KIB 1024UL
#define MIB (1024 * KIB)
#define PAGE (4 * KIB)
#define HUGE (2 * MIB)
#define FAULTS 4000             /* how many latencies are measured */

static int uffd;
static char *mem;
static size_t size;
static volatile bool stop;
static uint64_t latency[FAULTS];

static uint64_t now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static int open_uffd(void)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = { .api = UFFD_API,
                              .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
    int dev;

    if (fd < 0) {
        dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        /* USERFAULTFD_IOC_NEW, which older headers lack */
        fd = dev < 0 ? -1 :
             ioctl(dev, _IO(0xAA, 0x00), O_CLOEXEC | O_NONBLOCK);
    }
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api)) {
        warn("userfaultfd");
        exit(77);
    }
    return fd;
}

static void protect(void *at, size_t len, bool on)
{
    struct uffdio_writeprotect wp = {
        .range = { (uintptr_t)at, len },
        .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };

    while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp)) {
        if (errno != EAGAIN) {
            err(1, "UFFDIO_WRITEPROTECT");
        }
    }
}

static char *map(bool huge)
{
    char *area = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };

    if (area == MAP_FAILED) {
        err(1, "mmap");
    }
    area = (char *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
    if (madvise(area, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE)) {
        warn("no transparent huge pages");
    }
    for (size_t i = 0; i < size; i += PAGE) {
        *(size_t *)(area + i) = i + 1;
    }
    reg.range.start = (uintptr_t)area;
    reg.range.len = size;
    if (ioctl(uffd, UFFDIO_REGISTER, &reg)) {
        warn("UFFDIO_REGISTER");
        exit(77);
    }
    return area;
}

/* AnonHugePages of this process, KiB */
static long huge_kib(void)
{
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    long kib = 0;

    while (f && fgets(line, sizeof(line), f)) {
        sscanf(line, "AnonHugePages: %ld", &kib);
    }
    if (f) {
        fclose(f);
    }
    return kib;
}

static void *serve(void *opaque)
{
    static char slot[PAGE];
    struct uffd_msg msg;

    while (!stop) {
        struct pollfd p = { .fd = uffd, .events = POLLIN };

        if (poll(&p, 1, 50) <= 0 ||
            read(uffd, &msg, sizeof(msg)) != sizeof(msg)) {
            continue;
        }
        char *page = (char *)(uintptr_t)(msg.arg.pagefault.address &
                                         ~(PAGE - 1));
        memcpy(slot, page, PAGE);
        protect(page, PAGE, false);
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Writes to pages of the first eighth, the others then being whole or not */
static void fault_some(void)
{
    size_t pages = size / 8 / PAGE, count = pages < FAULTS ? pages : FAULTS;

    for (size_t i = 0; i < count; i++) {
        volatile char *page = mem + i * (pages / count) * PAGE;
        uint64_t start = now();

        *page += 1;
        latency[i] = now() - start;
    }
    qsort(latency, count, sizeof(latency[0]), compare);
    printf("fault-p50-us %.1f\n", latency[count / 2] / 1e3);
    printf("fault-p99-us %.1f\n", latency[count * 99 / 100] / 1e3);
}

/* Copy a run, un-protect it, write it; returns bytes per second */
static double scan(size_t run, int fd)
{
    char *buffer = malloc(run);
    uint64_t start;

    if (!buffer || (fd >= 0 && (ftruncate(fd, 0) || lseek(fd, 0, SEEK_SET)))) {
        err(1, "cannot start the scan");
    }
    memset(buffer, 1, run);
    start = now();
    for (size_t i = 0; i < size; i += run) {
        memcpy(buffer, mem + i, run);
        protect(mem + i, run, false);
        if (fd >= 0 && write(fd, buffer, run) != run) {
            err(1, "write");
        }
    }
    start = now() - start;
    free(buffer);
    return size * 1e9 / start;
}

static double protect_ms_per_gib(void)
{
    uint64_t start = now();

    protect(mem, size, true);
    return (now() - start) / 1e6 * 1024 * MIB / size;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    long before;
    int fd;

    if (argc != 3 || !(size = strtoul(argv[2], NULL, 10) * MIB)) {
        errx(2, "usage: probe FILE MIB");
    }
    fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) {
        err(1, "%s", argv[1]);
    }
    uffd = open_uffd();
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (pthread_create(&thread, NULL, serve, NULL)) {
        errx(1, "no thread");
    }

    mem = map(true);
    before = huge_kib();
    printf("protect-huge-ms-per-gib %.3f\n", protect_ms_per_gib());
    fault_some();
    printf("scan-2m-gb-per-s %.3f\n", scan(HUGE, fd) / 1e9);
    /* but for the eighth with faults in it, which cannot be whole */
    printf("huge-left-percent %.1f\n",
           before ? 100.0 * huge_kib() / (before * 7 / 8) : 0);
    protect(mem, size, true);
    printf("scan-2m-no-write-gb-per-s %.3f\n", scan(HUGE, -1) / 1e9);
    protect(mem, size, true);
    printf("scan-4k-gb-per-s %.3f\n", scan(PAGE, fd) / 1e9);
    munmap(mem, size);

    mem = map(false);
    printf("protect-4k-ms-per-gib %.3f\n", protect_ms_per_gib());

    stop = true;
    pthread_join(thread, NULL);
    return 0;
}
