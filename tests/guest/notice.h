/*
 * Mode notice of the load program: it notices which page is wrong, where, and
 * which of its writes is missing.  Included by load.c.
 *
 * A page is 16 segments of 256 bytes.  Each write is to some segments in a row
 * and gets the page's next generation, which is in each segment's first word
 * and makes up the rest.  Generation 0 are zeros: a page that was zeroed, or
 * freed and used again.  The generations are kept twice, elsewhere.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define SEGMENTS 16
#define SEGMENT_WORDS (WORDS / SEGMENTS)
#define BLOCK 256               /* pages that one thread has to itself */
#define DISK_PAGES 4096
#define DISK_RATE 100           /* pages per second */
#define LOUD 40                 /* mismatches that are told of */

enum { ANON, SHARED, CACHE, DISK, KINDS };

static struct kind {
    const char *name;
    uint64_t *memory;           /* or */
    int fd;
    uint64_t pages, hot;
    unsigned owners;
    uint32_t *next;             /* generation, per page */
    uint32_t *generation[2];    /* per segment */
} kinds[KINDS] = {
    [ANON] = { .name = "anon" }, [SHARED] = { .name = "shared" },
    [CACHE] = { .name = "cache" }, [DISK] = { .name = "disk" },
};
/* Who writes to pages reads; who looks at all of them writes. */
static pthread_rwlock_t notice_lock =
    PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static uint64_t noticed;        /* mismatches */
static int disk_held;

static uint64_t segment_word(const struct kind *kind, uint64_t page,
                             unsigned segment, uint32_t generation, unsigned w)
{
    uint64_t first = (uint64_t)generation << 36 |
                     (uint64_t)(kind - kinds) << 32 | page << 4 | segment;

    if (!generation) {
        return 0;
    }
    return w ? (first ^ w) * 0x9e3779b97f4a7c15 : first;
}

/* Where the guest has the page: its frame, 0 if unknown */
static uint64_t frame_of(const void *address)
{
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY);

    if (fd >= 0) {
        if (pread(fd, &entry, 8, (uintptr_t)address / PAGE * 8) != 8) {
            entry = 0;
        }
        close(fd);
    }
    return entry & ((UINT64_C(1) << 55) - 1);
}

static void mismatch(const struct kind *kind, uint64_t page, unsigned segment,
                     const uint64_t *data, unsigned w, uint32_t expect,
                     const char *when)
{
    uint64_t first = data[segment * SEGMENT_WORDS];
    char found[32] = "?";

    if (!first || (uint32_t)first == ((uint32_t)page << 4 | segment)) {
        snprintf(found, sizeof(found), "%" PRIu64, first >> 36);
    }
    if (__atomic_add_fetch(&noticed, 1, __ATOMIC_RELAXED) <= LOUD) {
        printf("MISMATCH kind=%s page=%" PRIu64 " offset=%u expected=%u "
               "found=%s word=%016" PRIx64 " frame=%" PRIx64 " at=%s\n",
               kind->name, page, (segment * SEGMENT_WORDS + w) * 8, expect,
               found, data[segment * SEGMENT_WORDS + w],
               kind->memory ? frame_of(data) : 0, when);
    }
}

/* The page's contents; buf is for those that are not in memory. */
static uint64_t *page_data(const struct kind *kind, uint64_t page,
                           uint64_t *buf)
{
    if (kind->memory) {
        return kind->memory + page * WORDS;
    }
    if (pread(kind->fd, buf, PAGE, page * PAGE) != PAGE) {
        printf("MISMATCH kind=%s page=%" PRIu64 " read: %s\n", kind->name,
               page, strerror(errno));
        __atomic_add_fetch(&noticed, 1, __ATOMIC_RELAXED);
    }
    return buf;
}

/* Returns whether it is as it was written. */
static int check_page(const struct kind *kind, uint64_t page,
                      const uint64_t *data, const char *when)
{
    int good = 1;

    for (unsigned s = 0; s < SEGMENTS; s++) {
        uint32_t g = kind->generation[0][page * SEGMENTS + s];
        uint32_t again = kind->generation[1][page * SEGMENTS + s];

        if (g != again) {
            printf("MISMATCH kind=books of=%s page=%" PRIu64 " segment=%u "
                   "first=%u second=%u at=%s\n", kind->name, page, s, g, again,
                   when);
            __atomic_add_fetch(&noticed, 1, __ATOMIC_RELAXED);
            good = 0;
        }
        for (unsigned w = 0; w < SEGMENT_WORDS; w++) {
            if (data[s * SEGMENT_WORDS + w] !=
                segment_word(kind, page, s, g, w)) {
                mismatch(kind, page, s, data, w, g, when);
                good = 0;
                break;
            }
        }
    }
    return good;
}

static void set_generation(struct kind *kind, uint64_t page, unsigned from,
                           unsigned to, uint32_t generation)
{
    for (unsigned copy = 0; copy < 2; copy++) {
        for (unsigned s = from; s < to; s++) {
            kind->generation[copy][page * SEGMENTS + s] = generation;
        }
    }
}

/* Give pages back to the guest's kernel; what is there next are zeros. */
static void free_pages(struct kind *kind, uint64_t page, uint64_t count)
{
    static const char zeros[PAGE] __attribute__((aligned(PAGE)));
    int ok = 0;

    if (kind == &kinds[ANON]) {
        ok = !madvise(kind->memory + page * WORDS, count * PAGE,
                      MADV_DONTNEED);
    } else if (kind == &kinds[SHARED]) {
        ok = !madvise(kind->memory + page * WORDS, count * PAGE, MADV_REMOVE);
    } else if (kind == &kinds[CACHE]) {
        ok = !fallocate(kind->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        page * PAGE, count * PAGE);
    }
    for (uint64_t i = page; i < page + count; i++) {
        if (!ok && kind->memory) {
            memset(kind->memory + i * WORDS, 0, PAGE);
        } else if (!ok && pwrite(kind->fd, zeros, PAGE, i * PAGE) != PAGE) {
            return;
        }
        set_generation(kind, i, 0, SEGMENTS, 0);
    }
}

static void notice_write(struct kind *kind, uint64_t page, uint64_t random,
                         uint64_t *buf)
{
    uint64_t *data = page_data(kind, page, buf);
    unsigned from = random % SEGMENTS;
    unsigned to = from + 1 + (random >> 8) % (SEGMENTS - from);
    unsigned what = (random >> 16) % 64;
    uint32_t generation;

    check_page(kind, page, data, "write");
    __atomic_add_fetch(&total, 1, __ATOMIC_RELAXED);
    if (what == 0 && kind != &kinds[DISK] && (random >> 32) % 4 == 0) {
        free_pages(kind, page / BLOCK * BLOCK, BLOCK);
        return;
    }
    if (what < 4) {
        free_pages(kind, page, 1);
        return;
    }
    if (what < 8) {
        generation = from = 0;
        to = SEGMENTS;
    } else {
        /* a generation and what a segment's first word has room for */
        generation = kind->next[page] = kind->next[page] % 0xfffffff + 1;
    }
    for (unsigned s = from; s < to; s++) {
        for (unsigned w = 0; w < SEGMENT_WORDS; w++) {
            data[s * SEGMENT_WORDS + w] =
                segment_word(kind, page, s, generation, w);
        }
    }
    if (!kind->memory) {
        size_t size = (to - from) * SEGMENT_WORDS * 8, at = from *
            SEGMENT_WORDS * 8;

        if (kind == &kinds[DISK]) {
            at = 0;             /* O_DIRECT is for whole blocks */
            size = PAGE;
        }
        if (pwrite(kind->fd, (char *)data + at, size, page * PAGE + at) !=
            (ssize_t)size) {
            printf("MISMATCH kind=%s page=%" PRIu64 " write: %s\n",
                   kind->name, page, strerror(errno));
            __atomic_add_fetch(&noticed, 1, __ATOMIC_RELAXED);
            return;
        }
    }
    set_generation(kind, page, from, to, generation);
}

/* A page of the owner's own blocks, most often of the hot ones */
static uint64_t notice_page(const struct kind *kind, uint64_t random,
                            unsigned owner)
{
    uint64_t limit = random % 16 ? kind->hot : kind->pages;
    uint64_t blocks = limit / BLOCK / kind->owners;

    return ((random >> 8) % blocks * kind->owners + owner) * BLOCK +
           (random >> 40) % BLOCK;
}

static void *notice_thread(void *opaque)
{
    unsigned thread = (uintptr_t)opaque;
    int is_disk = thread == UINT_MAX;
    uint64_t random = thread + 1, last = now_ns(), owed = 0;
    uint64_t *buf = aligned_alloc(PAGE, PAGE);
    struct timespec pause = { 0, 1000000 };
    cpu_set_t cpus;

    if (!buf) {
        return NULL;
    }
    if (!is_disk) {
        CPU_ZERO(&cpus);
        CPU_SET(thread, &cpus);
        sched_setaffinity(0, sizeof(cpus), &cpus);
    }
    for (;;) {
        owed = pages_owed(owed, &last, is_disk ? DISK_RATE :
                          __atomic_load_n(&par_rate, __ATOMIC_RELAXED));
        for (; owed >= 1000000; owed -= 1000000) {
            struct kind *kind = &kinds[is_disk ? DISK : random >> 50 & 1 ?
                                       ANON : 1 + (random >> 51 & 1)];

            random = mix(random);
            pthread_rwlock_rdlock(&notice_lock);
            if (!is_disk || !disk_held) {
                notice_write(kind, notice_page(kind, random,
                                               is_disk ? 0 : thread),
                             mix(random + 1), buf);
            }
            pthread_rwlock_unlock(&notice_lock);
            if (is_disk && random >> 58 == 0) {
                fsync(kind->fd);
            }
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static int notice_kind(struct kind *kind, uint64_t count, uint64_t hot_pages,
                       unsigned owners)
{
    uint64_t round = BLOCK * owners;

    kind->pages = count / round * round;
    kind->hot = hot_pages / round * round;
    kind->hot = kind->hot ? kind->hot : round;
    kind->owners = owners;
    kind->next = calloc(kind->pages, sizeof(uint32_t));
    for (unsigned copy = 0; copy < 2; copy++) {
        kind->generation[copy] = calloc(kind->pages * SEGMENTS,
                                        sizeof(uint32_t));
        if (!kind->generation[copy]) {
            return -1;
        }
    }
    if (kind == &kinds[ANON] || kind == &kinds[SHARED]) {
        kind->memory = mmap(NULL, kind->pages * PAGE, PROT_READ | PROT_WRITE,
                            MAP_ANONYMOUS | (kind == &kinds[ANON] ?
                            MAP_PRIVATE : MAP_SHARED), -1, 0);
        return kind->memory == MAP_FAILED || !kind->next ? -1 : 0;
    }
    if (kind == &kinds[CACHE]) {
        kind->fd = memfd_create("notice", 0);   /* a file of a tmpfs */
        return kind->fd < 0 || !kind->next ||
               ftruncate(kind->fd, kind->pages * PAGE) ? -1 : 0;
    }
    kind->fd = open("/dev/vda", O_RDWR | O_DIRECT);
    return kind->fd < 0 || !kind->next ? -1 : 0;
}

/*
 * Half of the pages are anonymous, a quarter is shared, a quarter is in the
 * page cache.  A disk is written to only by a guest's first process: a host's
 * disk is not to be touched.  Returns how many CPUs have a thread, 0 on failure.
 */
static unsigned notice_start(uint64_t count, uint64_t hot_pages, uint64_t rate)
{
    unsigned cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t *buf = aligned_alloc(PAGE, PAGE);
    pthread_t thread;

    if (count < 4 * cpus * BLOCK || !buf) {
        fprintf(stderr, "load: notice is for %u MiB or more\n", 4 * cpus);
        return 0;
    }
    if (notice_kind(&kinds[ANON], count / 2, hot_pages / 2, cpus) ||
        notice_kind(&kinds[SHARED], count / 4, hot_pages / 4, cpus) ||
        notice_kind(&kinds[CACHE], count / 4, hot_pages / 4, cpus) ||
        (getpid() == 1 && !access("/dev/vda", F_OK) &&
         notice_kind(&kinds[DISK], DISK_PAGES, DISK_PAGES / 4, 1))) {
        fprintf(stderr, "load: notice: %s\n", strerror(errno));
        return 0;
    }
    /* Most pages have contents; a disk's are zeros at first. */
    for (struct kind *kind = kinds; kind < &kinds[DISK]; kind++) {
        for (uint64_t page = 0; page < kind->pages; page++) {
            notice_write(kind, page, UINT64_C(0xf0f << 12) << 4, buf);
        }
    }
    par_rate = rate;
    for (unsigned i = 0; i < cpus; i++) {
        if (pthread_create(&thread, NULL, notice_thread,
                           (void *)(uintptr_t)i)) {
            return 0;
        }
    }
    if (kinds[DISK].pages && pthread_create(&thread, NULL, notice_thread,
                                            (void *)(uintptr_t)UINT_MAX)) {
        return 0;
    }
    free(buf);
    return cpus;
}

static void notice_verify(void)
{
    static uint64_t buf[WORDS] __attribute__((aligned(PAGE)));
    uint64_t count = 0, wrong = 0;

    pthread_rwlock_wrlock(&notice_lock);
    noticed += bad;
    for (struct kind *kind = kinds; kind < &kinds[KINDS]; kind++) {
        for (uint64_t page = 0; page < kind->pages; page++) {
            wrong += !check_page(kind, page, page_data(kind, page, buf),
                                 "verify");
        }
        count += kind->pages;
    }
    for (uint64_t i = 0; i < piece_count; i++) {
        wrong += piece_wrong_pages(&pieces[i]);
    }
    printf("VERIFY pages=%" PRIu64 " bad=%" PRIu64 " writes=%" PRIu64 "\n",
           count + piece_count * PIECE_PAGES, noticed > wrong ? noticed :
           wrong, total);
    pthread_rwlock_unlock(&notice_lock);
}

/* With the disk held nothing is written to it; for copies of it. */
static void hold_disk(int hold)
{
    pthread_rwlock_wrlock(&notice_lock);
    disk_held = hold;
    pthread_rwlock_unlock(&notice_lock);
    printf("HELD %d\n", hold);
}
