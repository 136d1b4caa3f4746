/*
 * Stock's and the series' page cache in one program, called in turn.
 *
 * Built by scripts/bench from both trees' migration/page_cache.c, with the
 * functions renamed.  Prints one line per figure:
 *
 *   case stock patched
 *
 * replay hits [SEED]     hit rate in % of workloads of 16 rounds, cache of
 *                        64 MiB; a third column has what is possible at best
 * replay bytes [SEED]    the same in MiB sent
 * replay growth [MIB]..  ns per page found, and not found, by size of the cache
 * replay resize          ms: the longest that a call takes while the size
 *                        changes, and in which step
 * replay memory          memory used in % of the size of a full cache
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void *stock_cache_init(uint64_t, size_t, void **);
void stock_cache_fini(void *);
bool stock_cache_is_cached(const void *, uint64_t, uint64_t);
uint8_t *stock_get_cached_data(const void *, uint64_t);
int stock_cache_insert(void *, uint64_t, const uint8_t *, uint64_t);

void *patched_cache_init(uint64_t, size_t, void **);
void patched_cache_fini(void *);
uint8_t *patched_cache_lookup(void *, uint64_t);
uint8_t *patched_cache_insert(void *, uint64_t);
bool patched_cache_remove(void *, uint64_t);
void patched_cache_round(void *);
void patched_cache_move(void *, void *);
bool patched_cache_moving(const void *);

/* Trace events that only one of the trees has */
#define EVENT(name) __attribute__((weak)) uint16_t _TRACE_##name##_DSTATE;
EVENT(MIGRATION_PAGECACHE_INIT)
EVENT(MIGRATION_PAGECACHE_INSERT)
EVENT(MIGRATION_PAGECACHE_MOVE)

static uint64_t seed;

static uint64_t rnd(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % n;
}

static void rnd_start(unsigned number)
{
    seed = 0x9e3779b97f4a7c15 * (number + 1);
    for (int i = 0; i < 16; i++) {
        rnd(2);
    }
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static int64_t rss(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (!f || fscanf(f, "%*d %ld", &pages) != 1) {
        perror("statm");
        exit(1);
    }
    fclose(f);
    return pages * (int64_t)sysconf(_SC_PAGESIZE);
}

/* ---- both sides in the way in which the save loop uses them ------------- */

typedef struct {
    void *cache;
    uint64_t round;
    size_t page_size;
} Side;

typedef enum { STOCK, PATCHED, SIDES } Which;

static void side_init(Side *s, Which which, uint64_t pages, size_t page_size)
{
    s->cache = which == STOCK ?
        stock_cache_init(pages * page_size, page_size, NULL) :
        patched_cache_init(pages * page_size, page_size, NULL);
    s->round = 1;
    s->page_size = page_size;
    if (!s->cache) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
}

static void side_fini(Side *s, Which which)
{
    which == STOCK ? stock_cache_fini(s->cache) : patched_cache_fini(s->cache);
}

static void side_round(Side *s, Which which)
{
    s->round++;
    if (which == PATCHED) {
        patched_cache_round(s->cache);
    }
}

/* A dirty page: true if it can be encoded. */
static inline bool side_visit(Side *s, Which which, uint64_t pfn,
                              const uint8_t *data, bool refresh)
{
    uint64_t addr = pfn * s->page_size;
    uint8_t *cached;

    if (which == STOCK) {
        if (stock_cache_is_cached(s->cache, addr, s->round)) {
            cached = stock_get_cached_data(s->cache, addr);
            if (refresh) {
                memcpy(cached, data, s->page_size);
            }
            return true;
        }
        stock_cache_insert(s->cache, addr, data, s->round);
        return false;
    }
    cached = patched_cache_lookup(s->cache, addr);
    if (cached) {
        if (refresh) {
            memcpy(cached, data, s->page_size);
        }
        return true;
    }
    cached = patched_cache_insert(s->cache, addr);
    if (cached) {
        memcpy(cached, data, s->page_size);
    }
    return false;
}

/* A page that was zeroed: stock inserts it, the series forgets it. */
static void side_zero(Side *s, Which which, uint64_t pfn, const uint8_t *zeros)
{
    if (which == STOCK) {
        stock_cache_insert(s->cache, pfn * s->page_size, zeros, s->round);
    } else {
        patched_cache_remove(s->cache, pfn * s->page_size);
    }
}

/* ---- workloads: which pages are dirty in a round, in order ------------- */

#define CACHE 16384             /* pages: 64 MiB */
#define GUEST 262144            /* pages: 1 GiB */
#define REGION 512              /* pages: 2 MiB */
#define ROUNDS 16

typedef struct {
    uint64_t pfn;
    bool zero;
} Visit;

typedef struct {
    const char *name;
    enum { HOT, SCATTERED, ZIPF, STRIDES, TWO, SLIDING, PHASES, SWEEP, ZEROED } kind;
    double arg;                 /* size relative to the cache, or exponent */
    double step;                /* how much of that is new in a round */
} Workload;

static const Workload workloads[] = {
    { "contiguous-0.5", HOT, 0.5 },
    { "contiguous-1", HOT, 1 },
    { "contiguous-1.5", HOT, 1.5 },
    { "contiguous-2", HOT, 2 },
    { "contiguous-4", HOT, 4 },
    { "scattered-0.5", SCATTERED, 0.5 },
    { "scattered-1", SCATTERED, 1 },
    { "scattered-1.5", SCATTERED, 1.5 },
    { "scattered-2", SCATTERED, 2 },
    { "scattered-4", SCATTERED, 4 },
    { "zipf-0.8", ZIPF, 0.8 },
    { "zipf-1.0", ZIPF, 1.0 },
    { "zipf-1.2", ZIPF, 1.2 },
    { "strides-2m", STRIDES, 0.25 },
    { "two-buffers", TWO, 1 },
    { "sliding-window", SLIDING, 1, 0.125 },
    { "sliding-half", SLIDING, 0.5, 0.125 },
    { "sliding-fast", SLIDING, 1, 0.5 },
    { "sliding-large", SLIDING, 2, 0.25 },
    { "phases", PHASES, 1, 0.25 },
    { "hot-and-sweep", SWEEP, 0.5 },
    { "zeroed-reused", ZEROED, 0.75 },
};
#define WORKLOADS (sizeof(workloads) / sizeof(*workloads))

static Visit *visits[ROUNDS];
static size_t num_visits[ROUNDS];

static void add_visit(int round, uint64_t pfn, bool zero)
{
    size_t n = num_visits[round]++;

    if (!(n & (n - 1))) {
        visits[round] = realloc(visits[round],
                                (n ? 2 * n : 1) * sizeof(Visit));
    }
    visits[round][n] = (Visit) { pfn, zero };
}

/* @n of the pages in [0, @of), in order */
static void choose(uint8_t *set, size_t n, size_t of)
{
    memset(set, 0, of);
    while (n) {
        uint64_t pfn = rnd(of);

        if (!set[pfn]) {
            set[pfn] = 1;
            n--;
        }
    }
}

/* How often the pages of a guest are written to by chance, hot ones scattered */
#define ZIPF_DRAWS 32768

static void make_zipf(double exponent)
{
    static double sum[GUEST];
    static uint32_t page[GUEST];
    static uint8_t dirty[GUEST];

    for (size_t i = 0; i < GUEST; i++) {
        sum[i] = pow(i + 1, -exponent) + (i ? sum[i - 1] : 0);
        page[i] = i;
    }
    for (size_t i = GUEST - 1; i > 0; i--) {
        size_t j = rnd(i + 1);
        uint32_t p = page[i];

        page[i] = page[j];
        page[j] = p;
    }
    for (int r = 0; r < ROUNDS; r++) {
        memset(dirty, 0, sizeof(dirty));
        for (int d = 0; d < ZIPF_DRAWS; d++) {
            double x = rnd(1ull << 50) * sum[GUEST - 1] / (1ull << 50);
            size_t low = 0, high = GUEST - 1;

            while (low < high) {
                size_t mid = (low + high) / 2;

                if (sum[mid] > x) {
                    high = mid;
                } else {
                    low = mid + 1;
                }
            }
            dirty[page[low]] = 1;
        }
        for (size_t p = 0; p < GUEST; p++) {
            if (dirty[p]) {
                add_visit(r, p, false);
            }
        }
    }
}

static void make_workload(const Workload *w, unsigned number)
{
    static uint8_t set[GUEST];
    size_t n = w->arg * CACHE;

    rnd_start(number);
    memset(num_visits, 0, sizeof(num_visits));
    switch (w->kind) {
    case ZIPF:
        make_zipf(w->arg);
        return;
    case SCATTERED:
    case SWEEP:
    case ZEROED:
        choose(set, n, GUEST);
        break;
    default:
        break;
    }

    for (int r = 0; r < ROUNDS; r++) {
        switch (w->kind) {
        case HOT:
            for (size_t p = 0; p < n; p++) {
                add_visit(r, p + 1000, false);
            }
            break;
        case SCATTERED:
            for (size_t p = 0; p < GUEST; p++) {
                if (set[p]) {
                    add_visit(r, p, false);
                }
            }
            break;
        case STRIDES:
            for (size_t p = 0; p < GUEST; p++) {
                if (p % REGION < n / (GUEST / REGION)) {
                    add_visit(r, p, false);
                }
            }
            break;
        case TWO:
            for (size_t p = 0; p < 2 * CACHE; p++) {
                if (p % CACHE < n / 2) {
                    add_visit(r, p, false);
                }
            }
            break;
        case SLIDING:
            for (size_t p = 0; p < n; p++) {
                add_visit(r, p + r * (size_t)(n * w->step), false);
            }
            break;
        case PHASES:
            for (size_t p = 0; p < n; p++) {
                add_visit(r, p + (size_t)(r * w->step) * n, false);
            }
            break;
        case SWEEP:
            for (size_t p = 0; p < GUEST; p++) {
                if (set[p] || p / CACHE == r) {
                    add_visit(r, p, false);
                }
            }
            break;
        case ZEROED:
            /*
             * Memory is freed, allocated and zeroed in one part of the guest
             * after another, and then a third of it is written to a little.
             */
            for (size_t p = 0; p < GUEST; p++) {
                int part = p / CACHE;

                if (set[p]) {
                    add_visit(r, p, false);
                } else if (part == r) {
                    add_visit(r, p, true);
                } else if (part == r - 1 && p % 3 == 0) {
                    add_visit(r, p, false);
                }
            }
            break;
        default:
            abort();
        }
    }
}

/* What a page costs: header and data, a typical delta, a zero page */
#define BYTES_RAW (8 + 4096)
#define BYTES_DELTA 208
#define BYTES_ZERO 9
/* 256 bytes written to a page that the destination knows to be zero */
#define BYTES_FROM_ZERO 278

typedef struct {
    double hits;                /* % of the pages with data */
    double mib;
} Result;

/* Misses are pages that were not cached, from_zero of them known to be zero. */
static Result make_result(size_t hits, size_t misses, size_t zeros,
                          size_t from_zero)
{
    return (Result) {
        100.0 * hits / (hits + misses),
        (BYTES_DELTA * hits + BYTES_RAW * (misses - from_zero) +
         BYTES_ZERO * zeros + BYTES_FROM_ZERO * from_zero) / 1048576.0,
    };
}

static Result replay(Which which)
{
    static uint8_t page[64], known_zero[4 * GUEST];
    size_t hits = 0, misses = 0, zeros = 0, from_zero = 0;
    Side s;

    memset(known_zero, 0, sizeof(known_zero));
    side_init(&s, which, CACHE, sizeof(page));
    for (int r = 0; r < ROUNDS; r++) {
        for (size_t i = 0; i < num_visits[r]; i++) {
            const Visit *v = &visits[r][i];

            if (v->zero) {
                zeros++;
                side_zero(&s, which, v->pfn, page);
                known_zero[v->pfn] = which == PATCHED;
            } else if (known_zero[v->pfn]) {
                /* Needs no cache, and is no hit of it. */
                known_zero[v->pfn] = 0;
                from_zero++;
                misses++;
            } else if (side_visit(&s, which, v->pfn, page, false)) {
                hits++;
            } else {
                misses++;
            }
        }
        side_round(&s, which);
    }
    side_fini(&s, which);
    return make_result(hits, misses, zeros, from_zero);
}

/*
 * The best that is possible with so many pages, knowing the future (Belady's
 * MIN, free not to insert a page).
 */
typedef struct {
    uint64_t next;              /* when it is visited again */
    uint64_t pfn;
} Future;

static Future *heap;
static size_t heap_len;

static void heap_push(Future f)
{
    size_t i = heap_len++;

    while (i && heap[(i - 1) / 2].next < f.next) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = f;
}

static void heap_pop(void)
{
    Future last = heap[--heap_len];
    size_t i = 0, c;

    while ((c = 2 * i + 1) < heap_len) {
        if (c + 1 < heap_len && heap[c + 1].next > heap[c].next) {
            c++;
        }
        if (heap[c].next <= last.next) {
            break;
        }
        heap[i] = heap[c];
        i = c;
    }
    heap[i] = last;
}

static Result best(void)
{
    size_t total = 0, hits = 0, misses = 0, zeros = 0, cached = 0, t = 0;
    size_t from_zero = 0;
    uint64_t *next, *last, *in;
    const uint64_t never = UINT64_MAX;
    static uint8_t known_zero[4 * GUEST];

    memset(known_zero, 0, sizeof(known_zero));

    for (int r = 0; r < ROUNDS; r++) {
        total += num_visits[r];
    }
    next = malloc(total * sizeof(*next));
    last = malloc(4 * GUEST * sizeof(*last));
    in = calloc(4 * GUEST, sizeof(*in));       /* its next visit, if cached */
    heap = malloc((total + 1) * sizeof(*heap));
    heap_len = 0;

    memset(last, 0xff, 4 * GUEST * sizeof(*last));
    t = total;
    for (int r = ROUNDS - 1; r >= 0; r--) {
        for (size_t i = num_visits[r]; i-- > 0; ) {
            uint64_t pfn = visits[r][i].pfn;

            next[--t] = last[pfn];
            /* what was zeroed in between is of no use */
            last[pfn] = visits[r][i].zero ? never : t;
        }
    }
    for (int r = 0; r < ROUNDS; r++) {
        for (size_t i = 0; i < num_visits[r]; i++, t++) {
            uint64_t pfn = visits[r][i].pfn;

            if (visits[r][i].zero) {
                zeros++;
                known_zero[pfn] = 1;
                continue;
            }
            if (known_zero[pfn]) {
                known_zero[pfn] = 0;
                from_zero++;
                misses++;
            } else if (in[pfn]) {
                hits++;
                in[pfn] = 0;
                cached--;
            } else {
                misses++;
            }
            if (next[t] == never) {
                continue;
            }
            if (cached == CACHE) {
                while (in[heap[0].pfn] != heap[0].next) {
                    heap_pop();
                }
                if (heap[0].next <= next[t]) {
                    continue;
                }
                in[heap[0].pfn] = 0;
                heap_pop();
                cached--;
            }
            in[pfn] = next[t];
            cached++;
            heap_push((Future) { next[t], pfn });
        }
    }
    free(next);
    free(last);
    free(in);
    free(heap);
    return make_result(hits, misses, zeros, from_zero);
}

static void run_workloads(bool bytes, unsigned number)
{
    for (size_t w = 0; w < WORKLOADS; w++) {
        Result stock, patched, possible;

        make_workload(&workloads[w], number);
        stock = replay(STOCK);
        patched = replay(PATCHED);
        possible = best();
        printf("%s %.1f %.1f %.1f\n", workloads[w].name,
               bytes ? stock.mib : stock.hits,
               bytes ? patched.mib : patched.hits,
               bytes ? possible.mib : possible.hits);
        fflush(stdout);
    }
}

/* ---- time --------------------------------------------------------------- */

#define PAGE 4096
#define LOOKUPS 262144
/* Pages of the guest: more than the CPU's caches hold */
#define SOURCE 65536

static uint8_t *source;

static const uint8_t *guest_page(uint64_t pfn)
{
    return source + pfn % SOURCE * PAGE;
}

/* As the save loop does with a page that can't be encoded */
static void send_page(const uint8_t *data)
{
    static uint8_t buffer[32768];
    static size_t pos;

    memcpy(buffer + pos, data, PAGE);
    pos = (pos + PAGE) % sizeof(buffer);
    asm volatile("" : : "r" (buffer) : "memory");
}

/*
 * Pages with their own place in stock's cache: one for each remainder, from
 * anywhere in four times the cache.
 */
static uint64_t *full_set(size_t n)
{
    uint8_t *high = malloc(n);
    uint64_t *pfns = malloc(n * sizeof(*pfns)), *p = pfns;

    for (size_t i = 0; i < n; i++) {
        high[i] = rnd(4);
    }
    for (int h = 0; h < 4; h++) {
        for (size_t i = 0; i < n; i++) {
            if (high[i] == h) {
                *p++ = h * n + i;
            }
        }
    }
    free(high);
    return pfns;
}

static uint8_t *new_data(void)
{
    uint8_t *data = aligned_alloc(4096, PAGE);

    memset(data, 0x5a, PAGE);
    return data;
}

typedef struct {
    double fill, find, refresh, miss, send;
} Times;

static Times measure(Which which, size_t n, const uint64_t *pfns)
{
    Side s;
    Times t;
    /* all of them, or that many in runs of 64 */
    size_t runs = n > LOOKUPS ? n / LOOKUPS : 1, count;
    double t0;

    side_init(&s, which, n, PAGE);
    t0 = now_ns();
    for (size_t i = 0; i < n; i++) {
        side_visit(&s, which, pfns[i], guest_page(pfns[i]), false);
    }
    t.fill = (now_ns() - t0) / n;
    side_round(&s, which);

    for (int refresh = 0; refresh < 2; refresh++) {
        double best_time = INFINITY;

        for (int again = 0; again < 5; again++) {
            t0 = now_ns();
            count = 0;
            for (size_t i = 0; i < n; i++) {
                if (i / 64 % runs == 0) {
                    count += side_visit(&s, which, pfns[i],
                                        guest_page(pfns[i]), refresh);
                }
            }
            best_time = fmin(best_time, (now_ns() - t0) / count);
            for (size_t i = 0; i < n; i++) {
                if (i / 64 % runs) {
                    side_visit(&s, which, pfns[i], source, false);
                }
            }
            side_round(&s, which);
        }
        *(refresh ? &t.refresh : &t.find) = best_time;
    }

    for (int send = 0; send < 2; send++) {
        double best_time = INFINITY;

        for (int again = 0; again < 5; again++) {
            t0 = now_ns();
            count = 0;
            for (size_t i = 0; i < n; i++) {
                if (i / 64 % runs == 0) {
                    uint64_t pfn = pfns[i] + 4 * (1 + again) * n;

                    side_visit(&s, which, pfn, source, false);
                    if (send) {
                        send_page(guest_page(pfn));
                    }
                    count++;
                }
            }
            best_time = fmin(best_time, (now_ns() - t0) / count);
            for (size_t i = 0; i < n; i++) {
                side_visit(&s, which, pfns[i], source, false);
            }
            side_round(&s, which);
        }
        *(send ? &t.send : &t.miss) = best_time;
    }
    side_fini(&s, which);
    return t;
}

static void run_growth(size_t mib)
{
    size_t n = mib * 256;
    uint64_t *pfns;
    Times stock, patched;

    rnd_start(0);
    if (!source) {
        source = aligned_alloc(PAGE, (size_t)SOURCE * PAGE);
        memset(source, 0x5a, (size_t)SOURCE * PAGE);
    }
    pfns = full_set(n);
    stock = measure(STOCK, n, pfns);
    patched = measure(PATCHED, n, pfns);
    printf("fill-%zu %.1f %.1f\n", mib, stock.fill, patched.fill);
    printf("find-%zu %.1f %.1f\n", mib, stock.find, patched.find);
    printf("find-refresh-%zu %.1f %.1f\n", mib, stock.refresh,
           patched.refresh);
    printf("miss-%zu %.1f %.1f\n", mib, stock.miss, patched.miss);
    printf("miss-send-%zu %.1f %.1f\n", mib, stock.send, patched.send);
    fflush(stdout);
    free(pfns);
}

/* ---- resize ------------------------------------------------------------- */

static double longest, longest_cpu;

static double cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* What took this long may have been another process. */
static void took(double t0, double cpu0)
{
    longest = fmax(longest, now_ns() - t0);
    longest_cpu = fmax(longest_cpu, cpu_ns() - cpu0);
}

/*
 * Stock stops the save loop for all of it, and all pages are gone.  With the
 * series, rounds go on: each page of the old cache must be found, or be one of
 * as many as don't fit.
 */
static void run_resize(size_t from_mib, size_t to_mib)
{
    size_t from = from_mib * 256, to = to_mib * 256, found, rounds = 0;
    uint8_t *data = new_data();
    double t0, cpu0, stock, prepare, move;
    uint64_t *pfns;
    Side s;
    void *new;

    rnd_start(0);
    pfns = full_set(from);

    side_init(&s, STOCK, from, PAGE);
    for (size_t i = 0; i < from; i++) {
        side_visit(&s, STOCK, pfns[i], data, false);
    }
    t0 = now_ns();
    new = stock_cache_init(to * PAGE, PAGE, NULL);
    side_fini(&s, STOCK);
    stock = now_ns() - t0;
    stock_cache_fini(new);

    side_init(&s, PATCHED, from, PAGE);
    for (size_t i = 0; i < from; i++) {
        uint8_t *cached = patched_cache_insert(s.cache, pfns[i] * PAGE);

        memcpy(cached, data, PAGE);
        memcpy(cached, &pfns[i], sizeof(pfns[i]));
    }
    t0 = now_ns();
    new = patched_cache_init(to * PAGE, PAGE, NULL);
    prepare = now_ns() - t0;
    t0 = now_ns();
    patched_cache_move(new, s.cache);
    move = now_ns() - t0;
    s.cache = new;
    longest = longest_cpu = 0;
    do {
        found = 0;
        for (size_t i = 0; i < from; i++) {
            uint8_t *cached;

            cpu0 = cpu_ns();
            t0 = now_ns();
            cached = patched_cache_lookup(new, pfns[i] * PAGE);
            took(t0, cpu0);
            if (cached) {
                found++;
                if (memcmp(cached, &pfns[i], sizeof(pfns[i])) ||
                    memcmp(cached + 8, data + 8, PAGE - 8)) {
                    fprintf(stderr, "page %zu is not what it was\n", i);
                    exit(1);
                }
            }
        }
        if (to >= from && found != from) {
            fprintf(stderr, "%zu pages of %zu are left\n", found, from);
            exit(1);
        }
        cpu0 = cpu_ns();
        t0 = now_ns();
        patched_cache_round(new);
        took(t0, cpu0);
        rounds++;
    } while (patched_cache_moving(new));
    printf("resize-%zu-%zu-longest %.3f %.3f\n", from_mib, to_mib, stock / 1e6,
           fmax(move, longest) / 1e6);
    printf("resize-%zu-%zu-kept-percent 0 %.1f\n", from_mib, to_mib,
           100.0 * found / (from < to ? from : to));
    fprintf(stderr, "resize-%zu-%zu: prepare %.3f ms, move %.3f ms, "
            "longest call %.3f ms (%.3f ms of CPU), %zu rounds\n", from_mib,
            to_mib, prepare / 1e6, move / 1e6, longest / 1e6,
            longest_cpu / 1e6, rounds);
    fflush(stdout);
    side_fini(&s, PATCHED);
    free(pfns);
    free(data);
}

/* ---- memory ------------------------------------------------------------- */

static void run_memory(size_t mib)
{
    size_t n = mib * 256;
    uint8_t *data = new_data();
    uint64_t *pfns;
    double used[SIDES], half[SIDES];

    rnd_start(0);
    pfns = full_set(n);
    for (Which which = STOCK; which < SIDES; which++) {
        int64_t before = rss();
        Side s;

        side_init(&s, which, n, PAGE);
        for (size_t i = 0; i < n / 2; i++) {
            side_visit(&s, which, pfns[i], data, false);
        }
        half[which] = rss() - before;
        for (size_t i = n / 2; i < n; i++) {
            side_visit(&s, which, pfns[i], data, false);
        }
        /* and whatever remembers pages that are not cached */
        for (int r = 0; r < 4; r++) {
            side_round(&s, which);
            for (size_t i = 0; i < n; i++) {
                side_visit(&s, which, pfns[i], data, false);
            }
            for (size_t i = 0; i < n; i++) {
                side_visit(&s, which, pfns[i] + 4 * (r + 1) * n, data, false);
            }
        }
        used[which] = rss() - before;
        side_fini(&s, which);
    }
    printf("memory-half-%zu %.2f %.2f\n", mib, half[STOCK] / PAGE / n * 100,
           half[PATCHED] / PAGE / n * 100);
    printf("memory-%zu %.2f %.2f\n", mib, used[STOCK] / PAGE / n * 100,
           used[PATCHED] / PAGE / n * 100);
    fflush(stdout);
    free(pfns);
    free(data);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "hits";

    if (!strcmp(what, "hits") || !strcmp(what, "bytes")) {
        run_workloads(!strcmp(what, "bytes"), argc > 2 ? atoi(argv[2]) : 0);
    } else if (!strcmp(what, "growth")) {
        for (int i = 2; i < argc; i++) {
            run_growth(atoi(argv[i]));
        }
    } else if (!strcmp(what, "resize")) {
        run_resize(1024, 2048);
        run_resize(2048, 1024);
    } else if (!strcmp(what, "memory")) {
        run_memory(argc > 2 ? atoi(argv[2]) : 1024);
    } else {
        fprintf(stderr, "replay hits|bytes|growth|resize|memory\n");
        return 2;
    }
    return 0;
}
