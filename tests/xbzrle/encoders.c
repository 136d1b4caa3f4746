/*
 * Stock's and the series' XBZRLE encoder in one program, called in turn.
 *
 * Built by scripts/bench from both trees' migration/xbzrle.c, with the
 * functions renamed.  Prints one line per figure and pair:
 *
 *   case stock patched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int stock_xbzrle_encode_buffer(uint8_t *, uint8_t *, int, uint8_t *, int);
int patched_xbzrle_encode_buffer(uint8_t *, uint8_t *, int, uint8_t *, int);

#define PAGE 4096
#define GUARD 64
#define PAGES 256               /* 2 MiB of old and new: the L2 or L3 cache */

typedef int (*Encoder)(uint8_t *, uint8_t *, int, uint8_t *, int);

static uint64_t seed;

static uint32_t rnd(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 16) % n;
}

/* As in tests/unit/test-xbzrle.c: the output overflows at any place. */
static void fill_runs(uint8_t *old, uint8_t *new)
{
    unsigned i = rnd(2) ? 1 + rnd(99) : 0, single = rnd(8);

    for (int j = 0; j < PAGE; j++) {
        old[j] = new[j] = rnd(256);
    }
    while (i < PAGE) {
        unsigned run = rnd(2) ? 1 + rnd(7) : 1 + rnd(199);

        for (; run && i < PAGE; run--, i++) {
            new[i] ^= 1 + rnd(255);
        }
        i += rnd(8) < single ? 1 : 2;
    }
}

static int overruns(Encoder encode, uint8_t *old, uint8_t *new)
{
    static uint8_t dst[PAGE + GUARD] __attribute__((aligned(64)));

    memset(dst + PAGE, 0xa5, GUARD);
    encode(old, new, PAGE, dst, PAGE);
    for (int i = 0; i < GUARD; i++) {
        if (dst[PAGE + i] != 0xa5) {
            return 1;
        }
    }
    return 0;
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static uint8_t old_pages[PAGES][PAGE] __attribute__((aligned(4096)));
static uint8_t new_pages[PAGES][PAGE] __attribute__((aligned(4096)));

static double encode_all(Encoder encode)
{
    static uint8_t dst[PAGE + GUARD];
    double t0 = now_ns();

    for (int p = 0; p < PAGES; p++) {
        encode(old_pages[p], new_pages[p], PAGE, dst, PAGE);
    }
    return now_ns() - t0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int bytes, words;
    } patterns[] = {
        { "1-byte", 1, 0 }, { "bytes-1", 41, 0 }, { "bytes-10", 410, 0 },
        { "words-10", 0, 51 },
    };
    int pairs = argc > 1 ? atoi(argv[1]) : 9;
    int pages = argc > 2 ? atoi(argv[2]) : 400000;

    for (int pair = 0; pair < pairs; pair++) {
        static uint8_t old[PAGE], new[PAGE];
        int stock = 0, patched = 0;

        seed = 0x9e3779b97f4a7c15 + pair;
        for (int i = 0; i < pages; i++) {
            fill_runs(old, new);
            stock += overruns(stock_xbzrle_encode_buffer, old, new);
            patched += overruns(patched_xbzrle_encode_buffer, old, new);
        }
        printf("overruns %d %d\n", stock, patched);

        for (size_t n = 0; n < sizeof(patterns) / sizeof(*patterns); n++) {
            double a = 0, b = 0;
            int rounds = 40;

            for (int p = 0; p < PAGES; p++) {
                for (int j = 0; j < PAGE; j++) {
                    old_pages[p][j] = new_pages[p][j] = rnd(256);
                }
                for (int j = 0; j < patterns[n].bytes; j++) {
                    new_pages[p][rnd(PAGE)] ^= 1;
                }
                for (int j = 0; j < patterns[n].words; j++) {
                    unsigned w = rnd(PAGE / 8) * 8;

                    for (int k = 0; k < 8; k++) {
                        new_pages[p][w + k] ^= 1;
                    }
                }
            }
            for (int r = -2; r < rounds; r++) {
                double x = encode_all(stock_xbzrle_encode_buffer);
                double y = encode_all(patched_xbzrle_encode_buffer);

                if (r >= 0) {
                    a += x;
                    b += y;
                }
            }
            printf("%s %.1f %.1f\n", patterns[n].name, a / rounds / PAGES,
                   b / rounds / PAGES);
        }
    }
    return 0;
}
