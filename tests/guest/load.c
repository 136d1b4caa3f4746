/*
 * The load that runs in the demo's and the benchmarks' guest: it writes to
 * its memory at a given rate and can tell at any time whether every byte is
 * what it wrote.
 *
 *   load MIB HOT_MIB PAGES_PER_SECOND [MODE]
 *
 * MIB of memory are filled with noise; then pages of the first HOT_MIB are
 * written to, in random order, 8 bytes each.  Each write goes to the next of
 * the page's 64 slots, so a page's contents follow from its number and the
 * number of writes to it, which is kept elsewhere.
 *
 * MODE, besides that:
 *   scatter  the HOT_MIB are single pages all over the memory
 *   churn    memory is allocated, 256 bytes of each page are written, and it is
 *            freed a little later, half as many pages per second as above
 *   docs     the load generator of QEMU's documentation of XBZRLE: a byte per
 *            KiB of 16 MiB, as fast as it can, and PAGES_PER_SECOND of 0
 *   seq      one page after the other, and again from the first one
 *   par      a thread on each CPU, each with pages of its own and at that rate
 *   mixed    the same, and the first one goes through its pages as with seq
 *   notice   writes of different sizes to anonymous and shared memory, to a
 *            file of a tmpfs and to /dev/vda if it is there, of a thread on each
 *            CPU and one for the disk; pages are zeroed and freed, too.  A page
 *            that is wrong is told of in a line MISMATCH.  See notice.h
 *
 * Prints READY, then one TICK line per second; a line "v" on standard input
 * is answered by a VERIFY line after all pages were compared; "r N" sets the
 * rate to N pages per second; "w" prints the number of writes so far.
 * For free page hints there are also
 *
 *   f MIB  writes to MIB of other memory and frees it, then prints FREED
 *   p MIB  keeps allocating other memory, writing to all of it, comparing it
 *          and freeing it, MIB at most at a time; its pages count in VERIFY;
 *          0 frees all of it
 *   z MS   keeps the CPU for so long, from the kernel's own threads too
 *   d      begins to read from /dev/vda; from the second time on it prints
 *          READS, and how long the longest took since the last time
 *   h N    of mode notice: 1 holds its disk, 0 lets go of it; prints HELD
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define SLOTS 64
#define WORDS (PAGE / 8)

static uint64_t *memory;
static uint32_t *writes;        /* per page */
static uint64_t pages, hot, total, bad;
static int scatter, churn, docs, seq, par, mixed, notice;
static unsigned threads = 1;
/* Who writes to the memory reads; who looks at all of it writes. */
static pthread_rwlock_t all = PTHREAD_RWLOCK_INITIALIZER;
static uint64_t par_rate;

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

/* What word w of a page has to be after n writes to the page. */
static uint64_t expected(uint64_t page, unsigned w, uint32_t n)
{
    uint64_t value = mix(page * WORDS + w);

    if (w % (WORDS / SLOTS) == 0) {
        unsigned slot = w / (WORDS / SLOTS);

        value += (n + SLOTS - 1 - slot) / SLOTS;
    }
    return value;
}

static void write_page(uint64_t page)
{
    unsigned w = writes[page] % SLOTS * (WORDS / SLOTS);
    volatile uint64_t *p = memory + page * WORDS + w;

    if (*p != expected(page, w, writes[page])) {
        __atomic_add_fetch(&bad, 1, __ATOMIC_RELAXED);
    }
    *p = *p + 1;
    writes[page]++;
    __atomic_add_fetch(&total, 1, __ATOMIC_RELAXED);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * UINT64_C(1000000000) + ts.tv_nsec;
}

/* Memory that comes and goes, in pieces of a MiB. */
#define PIECE_PAGES 256

static struct piece {
    uint64_t *memory;
    uint64_t seed;
} *pieces;
static uint64_t piece_count, piece_target, piece_max;

/* No two pages have the same contents, nor one of them twice. */
static void piece_write(struct piece *piece)
{
    static uint64_t seed;

    piece->seed = mix((uintptr_t)piece->memory + ++seed);
    for (uint64_t i = 0; i < PIECE_PAGES * WORDS; i++) {
        piece->memory[i] = piece->seed + i;
    }
}

static uint64_t piece_wrong_pages(const struct piece *piece)
{
    uint64_t wrong = 0;

    for (uint64_t page = 0; page < PIECE_PAGES; page++) {
        for (uint64_t i = page * WORDS; i < (page + 1) * WORDS; i++) {
            if (piece->memory[i] != piece->seed + i) {
                wrong++;
                break;
            }
        }
    }
    return wrong;
}

static void piece_step(void)
{
    static uint64_t random = 1;
    struct piece *piece;

    random = mix(random);
    if (piece_count == piece_target) {
        piece_target = random % (piece_max + 1);
    }
    if (piece_count < piece_target) {
        piece = &pieces[piece_count];
        piece->memory = mmap(NULL, PIECE_PAGES * PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece->memory == MAP_FAILED) {
            piece_target = piece_count;
            return;
        }
        piece_count++;
        piece_write(piece);
    } else if (piece_count) {
        piece = &pieces[random % piece_count];
        bad += piece_wrong_pages(piece);
        munmap(piece->memory, PIECE_PAGES * PAGE);
        *piece = pieces[--piece_count];
    }
    if (piece_count && random >> 62 == 0) {
        piece = &pieces[(random >> 32) % piece_count];
        bad += piece_wrong_pages(piece);
        piece_write(piece);
    }
}

static void set_piece_max(uint64_t mib)
{
    if (!pieces) {
        pieces = calloc(65536, sizeof(*pieces));
    }
    piece_max = pieces && mib <= 65536 ? mib : 0;
    piece_target = piece_max;
    while (!piece_max && piece_count) {
        piece_step();
    }
    printf("PIECES %" PRIu64 "\n", piece_max);
}

static void fill_and_free(uint64_t mib)
{
    uint64_t size = mib << 20;
    uint64_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        printf("FREED 0\n");
        return;
    }
    for (uint64_t i = 0; i < size / 8; i++) {
        p[i] = i + 1;
    }
    munmap(p, size);
    printf("FREED %" PRIu64 "\n", mib);
}

static void keep_cpu(uint64_t ms)
{
    struct sched_param param = { .sched_priority = 50 };
    uint64_t end = now_ns() + ms * 1000000;

    sched_setscheduler(0, SCHED_FIFO, &param);
    while (now_ns() < end) {
        /* nothing */
    }
    param.sched_priority = 0;
    sched_setscheduler(0, SCHED_OTHER, &param);
    printf("KEPT %" PRIu64 "\n", ms);
}

static uint64_t reads, longest_read, read_began;    /* ns */

static void *read_disk(void *opaque)
{
    static char buf[PAGE] __attribute__((aligned(PAGE)));
    struct timespec pause = { 0, 500000 };
    int fd = *(int *)opaque;
    uint64_t random = 1, began, took;

    for (;;) {
        random = mix(random);
        began = now_ns();
        __atomic_store_n(&read_began, began, __ATOMIC_SEQ_CST);
        if (pread(fd, buf, PAGE, random % 4096 * PAGE) != PAGE) {
            printf("READS failed: %s\n", strerror(errno));
            return NULL;
        }
        took = now_ns() - began;
        __atomic_store_n(&read_began, 0, __ATOMIC_SEQ_CST);
        if (took > __atomic_load_n(&longest_read, __ATOMIC_SEQ_CST)) {
            __atomic_store_n(&longest_read, took, __ATOMIC_SEQ_CST);
        }
        __atomic_add_fetch(&reads, 1, __ATOMIC_SEQ_CST);
        nanosleep(&pause, NULL);
    }
}

static void disk(void)
{
    static int fd = -1;
    pthread_t thread;
    uint64_t longest, began, waits;

    if (fd < 0) {
        fd = open("/dev/vda", O_RDONLY | O_DIRECT);
        if (fd < 0 || pthread_create(&thread, NULL, read_disk, &fd)) {
            printf("READS failed: %s\n", strerror(errno));
            return;
        }
        printf("READS begin\n");
        return;
    }
    /* One that has no end yet counts, too. */
    began = __atomic_load_n(&read_began, __ATOMIC_SEQ_CST);
    waits = began ? now_ns() - began : 0;
    longest = __atomic_exchange_n(&longest_read, 0, __ATOMIC_SEQ_CST);
    printf("READS n=%" PRIu64 " longest_us=%" PRIu64 "\n",
           __atomic_load_n(&reads, __ATOMIC_SEQ_CST),
           (longest > waits ? longest : waits) / 1000);
}

static void verify(void)
{
    uint64_t wrong = 0;

    for (uint64_t i = 0; i < piece_count; i++) {
        wrong += piece_wrong_pages(&pieces[i]);
    }

    for (uint64_t page = 0; page < pages; page++) {
        for (unsigned w = 0; w < WORDS; w++) {
            if (memory[page * WORDS + w] != expected(page, w, writes[page])) {
                wrong++;
                break;
            }
        }
    }
    printf("VERIFY pages=%" PRIu64 " bad=%" PRIu64 " writes=%" PRIu64 "\n",
           pages + piece_count * PIECE_PAGES, wrong + bad, total);
}

/* The n-th page to write to; a multiplication by what is odd is a permutation. */
static uint64_t hot_page(uint64_t n)
{
    uint64_t size = 1;

    if (!scatter) {
        return n;
    }
    while (size < pages) {
        size *= 2;
    }
    do {
        n = (n * 0x9e3779b1 + 0x7f4a7c15) & (size - 1);
    } while (n >= pages);
    return n;
}

#define CHURN_PAGES 1024
#define CHURN_KEPT 16

/* Allocate some pages and write to them, and free those of a while ago. */
static void churn_pages(void)
{
    static uint64_t *kept[CHURN_KEPT], count;
    uint64_t **slot = &kept[count++ % CHURN_KEPT];

    if (*slot) {
        munmap(*slot, CHURN_PAGES * PAGE);
    }
    *slot = mmap(NULL, CHURN_PAGES * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*slot == MAP_FAILED) {
        *slot = NULL;
        return;
    }
    for (uint64_t i = 0; i < CHURN_PAGES; i++) {
        for (unsigned w = 0; w < 32; w++) {
            (*slot)[i * WORDS + w] = mix(count * CHURN_PAGES + i + w);
        }
    }
}

/* QEMU's documentation has this; here it looks up now and then. */
static void docs_round(void)
{
    static char *buf;

    if (!buf) {
        buf = calloc(4096, 4096);
        if (!buf) {
            return;
        }
    }
    for (int i = 0; i < 4096 * 4; i++) {
        ((volatile char *)buf)[i * 4096 / 4]++;
    }
    total++;
}

/* Which page is next, of those that are the thread's own */
static uint64_t next_page(uint64_t *random, unsigned thread)
{
    static uint64_t count;

    if (seq) {
        return count++ % hot;
    }
    if (mixed && !thread) {
        return count++ % (hot / 2);
    }
    *random = mix(*random);
    if (mixed) {
        return hot / 2 + *random % (hot / 2 / (threads - 1)) * (threads - 1) +
               thread - 1;
    }
    return *random % (hot / threads) * threads + thread;
}

/* What the clock says, but no burst after a pause; in 10^-6 pages */
static uint64_t pages_owed(uint64_t owed, uint64_t *last, uint64_t rate)
{
    uint64_t now = now_ns();

    owed += (now - *last) * rate / 1000;
    *last = now;
    return owed > rate * 20000 ? rate * 20000 : owed;
}

static void *write_pages(void *opaque)
{
    unsigned thread = (uintptr_t)opaque;
    uint64_t random = thread, last = now_ns(), owed = 0;
    struct timespec pause = { 0, 1000000 };
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(thread, &cpus);
    sched_setaffinity(0, sizeof(cpus), &cpus);
    for (;;) {
        owed = pages_owed(owed, &last,
                          __atomic_load_n(&par_rate, __ATOMIC_RELAXED));
        for (; owed >= 1000000; owed -= 1000000) {
            pthread_rwlock_rdlock(&all);
            write_page(next_page(&random, thread));
            pthread_rwlock_unlock(&all);
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}

#include "notice.h"

static void command(const char *line, uint64_t *rate)
{
    if (line[0] == 'v' && notice) {
        notice_verify();
    } else if (line[0] == 'h') {
        hold_disk(atoi(line + 1));
    } else if (line[0] == 'v') {
        pthread_rwlock_wrlock(&all);
        verify();
        pthread_rwlock_unlock(&all);
    } else if (line[0] == 'w') {
        printf("WRITES %" PRIu64 "\n", total);
    } else if (line[0] == 'r') {
        uint64_t n = strtoull(line + 1, NULL, 10);

        __atomic_store_n(par || notice ? &par_rate : rate, n, __ATOMIC_RELAXED);
        printf("RATE %" PRIu64 "\n", n);
    } else if (line[0] == 'f') {
        fill_and_free(strtoull(line + 1, NULL, 10));
    } else if (line[0] == 'p') {
        set_piece_max(strtoull(line + 1, NULL, 10));
    } else if (line[0] == 'z') {
        keep_cpu(strtoull(line + 1, NULL, 10));
    } else if (line[0] == 'd') {
        disk();
    }
}

int main(int argc, char **argv)
{
    uint64_t rate, random = 1, next_tick, last, owed = 0, churned = 0;
    char line[64];
    size_t len = 0;

    if (argc == 5) {
        scatter = !strcmp(argv[4], "scatter");
        churn = !strcmp(argv[4], "churn");
        docs = !strcmp(argv[4], "docs");
        seq = !strcmp(argv[4], "seq");
        mixed = !strcmp(argv[4], "mixed");
        par = mixed || !strcmp(argv[4], "par");
        notice = !strcmp(argv[4], "notice");
    }
    if (argc < 4 || argc > 5 ||
        (argc == 5 && !scatter && !churn && !docs && !seq && !par &&
         !notice)) {
        fprintf(stderr, "usage: load MIB HOT_MIB PAGES_PER_SECOND "
                "[scatter|churn|docs|seq|par|mixed|notice]\n");
        return 2;
    }
    pages = strtoull(argv[1], NULL, 10) * 256;
    hot = strtoull(argv[2], NULL, 10) * 256;
    rate = strtoull(argv[3], NULL, 10);
    if (!pages || !hot || hot > pages) {
        fprintf(stderr, "load: 0 < HOT_MIB <= MIB\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (notice) {
        if (!notice_start(pages, hot, rate)) {
            return 1;
        }
        rate = 0;
    }
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    writes = calloc(pages, sizeof(*writes));
    if (memory == MAP_FAILED || !writes) {
        fprintf(stderr, "load: %s\n", strerror(errno));
        return 1;
    }
    for (uint64_t page = 0; page < pages && !notice; page++) {
        for (unsigned w = 0; w < WORDS; w++) {
            memory[page * WORDS + w] = expected(page, w, 0);
        }
    }
    fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    printf("READY pages=%" PRIu64 "\n", pages);

    if (par) {
        threads = sysconf(_SC_NPROCESSORS_ONLN);
        if (mixed && threads < 2) {
            fprintf(stderr, "load: mixed is for 2 CPUs or more\n");
            return 2;
        }
        par_rate = rate;
        for (unsigned i = 0; i < threads; i++) {
            pthread_t thread;

            if (pthread_create(&thread, NULL, write_pages,
                               (void *)(uintptr_t)i)) {
                fprintf(stderr, "load: no thread\n");
                return 1;
            }
        }
        rate = 0;
    }
    last = now_ns();
    next_tick = last + UINT64_C(1000000000);
    for (;;) {
        struct pollfd pfd = { STDIN_FILENO, POLLIN, 0 };
        uint64_t now = now_ns();
        char c;

        owed = pages_owed(owed, &last, rate);
        for (; owed >= 1000000; owed -= 1000000) {
            write_page(hot_page(next_page(&random, 0)));
            if (churn && ++churned == 2 * CHURN_PAGES) {
                churned = 0;
                churn_pages();
            }
        }
        if (docs) {
            docs_round();
        }
        if (piece_max) {
            piece_step();
        }
        if (now >= next_tick) {
            printf("TICK writes=%" PRIu64 " bad=%" PRIu64 "\n", total,
                   bad + __atomic_load_n(&noticed, __ATOMIC_RELAXED));
            next_tick = now + UINT64_C(1000000000);
        }
        poll(&pfd, 1, docs ? 0 : 1);
        while (read(STDIN_FILENO, &c, 1) == 1) {
            if (c == '\n' || c == '\r') {
                line[len] = 0;
                command(line, &rate);
                len = 0;
            } else if (len < sizeof(line) - 1) {
                line[len++] = c;
            }
        }
    }
}
