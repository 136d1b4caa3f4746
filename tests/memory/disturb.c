/*
 * What Linux does to a process's memory, done over and over.
 *
 *   disturb [--swap FILE] [--poison] KIND PID:ADDRESS:BYTES...
 *   disturb --list
 *
 * For scripts/stress: each PID is a QEMU, and the BYTES from ADDRESS on, in its
 * address space, are the guest's memory.  Says "ready" when it has begun, ends
 * with SIGTERM, SIGINT or its parent, puts every setting back to what it was,
 * and says "done STEPS EFFECT WHAT": how many steps there were, and a number
 * that tells if they did anything.  "skip REASON", and exit status 77: this
 * kernel or user cannot.
 *
 * --swap FILE  where the kinds that need swap make a file of 1 GiB, which is
 *              removed in the end (default: disturb.swap)
 * --poison     allows the kind poison, which kills what uses the memory, and
 *              takes it from this machine until it is booted again
 *
 * Some kinds are settings of the whole machine: every process feels them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define PAGE 4096UL
#define HUGE (512 * PAGE)
#define SWAP_BYTES (1UL << 30)
#define MAX_TARGETS 8
#define MAX_SETTINGS 8

#define KSM "/sys/kernel/mm/ksm/"
#define THP "/sys/kernel/mm/transparent_hugepage/"
#define MEMORY "/sys/devices/system/memory/"
#define CGROUP1 "/sys/fs/cgroup/memory"
#define CGROUP2 "/sys/fs/cgroup"

struct target {
    int pid;
    int pidfd;
    uintptr_t address;
    size_t bytes;
    char cgroup[PATH_MAX];      /* its folder */
};

static struct target targets[MAX_TARGETS];
static int target_count;
static const char *swap_file = "disturb.swap";
static bool swap_on, poison_allowed;
static volatile sig_atomic_t ending;
static unsigned long steps, effect;
static char reason[256];

/* Settings that are put back */

static struct {
    const char *path;
    char old[128];
} settings[MAX_SETTINGS];
static int setting_count;

static bool put(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, value, strlen(value)) ==
              (ssize_t)strlen(value);
    int saved = errno;

    if (fd >= 0) {
        close(fd);
    }
    errno = saved;
    return ok;
}

static bool get(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? n : 0] = 0;
    text[strcspn(text, "\n")] = 0;
    return n > 0;
}

static unsigned long get_number(const char *path)
{
    char text[64];

    return get(path, text, sizeof(text)) ? strtoul(text, NULL, 10) : 0;
}

/* The number after NAME in a file of lines "NAME NUMBER" or "NAME: NUMBER" */
static unsigned long get_named(const char *path, const char *name)
{
    FILE *f = fopen(path, "re");
    char line[256];
    size_t len = strlen(name);
    unsigned long value = 0;

    while (f && fgets(line, sizeof(line), f)) {
        if (!strncmp(line, name, len) && strchr(": \t", line[len])) {
            value = strtoul(line + len + 1, NULL, 10);
            break;
        }
    }
    if (f) {
        fclose(f);
    }
    return value;
}

/* The one in brackets is what "always [madvise] never" is set to. */
static void chosen(char *text)
{
    char *from = strchr(text, '['), *to = from ? strchr(from, ']') : NULL;

    if (to) {
        *to = 0;
        memmove(text, from + 1, strlen(from + 1) + 1);
    }
}

static void set(const char *path, const char *value)
{
    if (setting_count == MAX_SETTINGS) {
        errx(1, "too many settings");
    }
    if (!get(path, settings[setting_count].old,
             sizeof(settings[setting_count].old))) {
        return;                 /* another kernel's */
    }
    chosen(settings[setting_count].old);
    settings[setting_count++].path = path;
    if (!put(path, value)) {
        warn("%s: %s", path, value);
    }
}

static void put_back(void)
{
    while (setting_count) {
        setting_count--;
        if (!put(settings[setting_count].path, settings[setting_count].old)) {
            warn("%s is not put back to %s", settings[setting_count].path,
                 settings[setting_count].old);
        }
    }
}

static bool cannot(const char *what)
{
    snprintf(reason, sizeof(reason), "%s: %s", what, strerror(errno));
    return false;
}

static bool can_write(const char *path)
{
    return access(path, W_OK) ? cannot(path) : true;
}

static void nap(unsigned ms)
{
    if (!ending) {
        usleep(ms * 1000);
    }
}

/* Swap, of our own */

static bool make_swap(void)
{
    char *head = calloc(1, PAGE);
    int fd = open(swap_file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    uint32_t *info;
    int error;
    bool ok;

    if (!head || fd < 0) {
        free(head);
        return cannot(swap_file);
    }
    /* what mkswap writes: version, last page, no bad pages */
    info = (uint32_t *)(head + 1024);
    info[0] = 1;
    info[1] = SWAP_BYTES / PAGE - 1;
    memcpy(head + PAGE - 10, "SWAPSPACE2", 10);
    error = posix_fallocate(fd, 0, SWAP_BYTES);
    ok = !error && pwrite(fd, head, PAGE, 0) == (ssize_t)PAGE && !fsync(fd);
    errno = error ? error : errno;
    if (!ok) {
        cannot(swap_file);
    } else if (swapon(swap_file, 0)) {
        ok = cannot("swapon");
    }
    swap_on = ok;
    close(fd);
    free(head);
    if (!ok) {
        unlink(swap_file);
    }
    return ok;
}

static void remove_swap(void)
{
    if (swap_on && swapoff(swap_file)) {
        warn("swapoff %s", swap_file);
        return;
    }
    swap_on = false;
    unlink(swap_file);
}

/* Advice to another process */

static bool can_advise(void)
{
    struct iovec none = { NULL, 0 };
    long n = syscall(SYS_process_madvise, targets[0].pidfd, &none, 0,
                     MADV_COLD, 0);

    return n < 0 ? cannot("process_madvise") : true;
}

/* In pieces, as one page that cannot be helped ends it; returns bytes. */
static size_t advise(int advice)
{
    size_t done = 0;

    for (int i = 0; i < target_count; i++) {
        struct target *t = &targets[i];

        for (size_t at = 0; at < t->bytes && !ending; at += HUGE) {
            size_t len = t->bytes - at < HUGE ? t->bytes - at : HUGE;
            struct iovec v = { (void *)(t->address + at), len };
            ssize_t n = syscall(SYS_process_madvise, t->pidfd, &v, 1,
                                advice, 0);

            done += n > 0 ? n : 0;
        }
    }
    return done;
}

/* Also those of shared memory, which VmSwap does not count */
static unsigned long swapped_out(void)
{
    return get_named("/proc/vmstat", "pswpout") +
           get_named("/proc/vmstat", "swpout_zero");
}

static void most(unsigned long value)
{
    effect = value > effect ? value : effect;
}

/* Kinds */

static bool start_nothing(void)
{
    return true;
}

static void step_nothing(void)
{
    nap(50);
}

static bool start_ksm(void)
{
    if (!can_write(KSM "run")) {
        return false;
    }
    set(KSM "advisor_mode", "none");
    set(KSM "smart_scan", "0");
    set(KSM "sleep_millisecs", "0");
    set(KSM "pages_to_scan", "20000");
    set(KSM "run", "1");
    return true;
}

static void step_ksm(void)
{
    most(get_number(KSM "pages_sharing"));
    nap(50);
}

static void end_ksm(void)
{
    /* Split what was merged, unless it was on before. */
    if (setting_count && !strcmp(settings[setting_count - 1].old, "0") &&
        !put(KSM "run", "2")) {
        warn(KSM "run");
    }
}

static bool start_khugepaged(void)
{
    if (!can_write(THP "enabled") || !can_write(THP "khugepaged/defrag")) {
        return false;
    }
    set(THP "enabled", "always");
    set(THP "khugepaged/max_ptes_none", "511");
    set(THP "khugepaged/pages_to_scan", "65536");
    set(THP "khugepaged/alloc_sleep_millisecs", "0");
    set(THP "khugepaged/scan_sleep_millisecs", "0");
    effect = get_number(THP "khugepaged/pages_collapsed");
    return true;
}

static void end_khugepaged(void)
{
    effect = get_number(THP "khugepaged/pages_collapsed") - effect;
}

static void step_collapse(void)
{
    effect += advise(MADV_COLLAPSE) / HUGE;
    nap(20);
}

static void step_cold(void)
{
    effect += advise(MADV_COLD) / PAGE;
    nap(20);
}

static bool start_pageout(void)
{
    effect = swapped_out();
    return can_advise() && make_swap();
}

static void step_pageout(void)
{
    advise(MADV_PAGEOUT);
    nap(20);
}

static void step_swapoff(void)
{
    step_pageout();
    nap(200);
    if (swapoff(swap_file)) {
        warn("swapoff");
        nap(500);
        return;
    }
    swap_on = false;
    if (!swapon(swap_file, 0)) {
        swap_on = true;
    }
}

static bool start_compact(void)
{
    effect = get_named("/proc/vmstat", "pgmigrate_success");
    return can_write("/proc/sys/vm/compact_memory");
}

static void step_compact(void)
{
    put("/proc/sys/vm/compact_memory", "1");
    nap(20);
}

static void end_compact(void)
{
    effect = get_named("/proc/vmstat", "pgmigrate_success") - effect;
}

static bool start_move(void)
{
    char nodes[64];

    if (!get("/sys/devices/system/node/online", nodes, sizeof(nodes))) {
        snprintf(reason, sizeof(reason), "this kernel has no NUMA");
        return false;
    }
    if (!strpbrk(nodes, ",-")) {
        snprintf(reason, sizeof(reason), "there is one NUMA node, so "
                 "move_pages() has nowhere to go");
        return false;
    }
    return true;
}

/* To node 0 and to node 1, in turn */
static void step_move(void)
{
    static void *pages[512];
    static int nodes[512], status[512];

    for (int i = 0; i < target_count; i++) {
        for (size_t at = 0; at < targets[i].bytes && !ending; at += HUGE) {
            for (int k = 0; k < 512; k++) {
                pages[k] = (void *)(targets[i].address + at + k * PAGE);
                nodes[k] = steps & 1;
            }
            if (syscall(SYS_move_pages, targets[i].pid, 512UL, pages, nodes,
                        status, 2 /* MPOL_MF_MOVE */) < 0) {
                continue;
            }
            for (int k = 0; k < 512; k++) {
                effect += status[k] == nodes[k];
            }
        }
    }
    nap(20);
}

/* Which folder the memory of a process is counted in; false: the top one */
static bool find_cgroup(struct target *t)
{
    char path[64], line[PATH_MAX];
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/cgroup", t->pid);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f)) {
        char *name = strchr(line, ':');
        bool v2 = !strncmp(line, "0::", 3);

        line[strcspn(line, "\n")] = 0;
        if (!name || !(name = strchr(name + 1, ':')) || !strcmp(name, ":/")) {
            continue;
        }
        if (strstr(line, ":memory:") || v2) {
            snprintf(t->cgroup, sizeof(t->cgroup), "%s%.1000s",
                     v2 ? CGROUP2 : CGROUP1, name + 1);
            if (!access(t->cgroup, W_OK)) {
                break;
            }
            t->cgroup[0] = 0;
        }
    }
    if (f) {
        fclose(f);
    }
    return t->cgroup[0];
}

static bool start_cgroup(void)
{
    for (int i = 0; i < target_count; i++) {
        if (!find_cgroup(&targets[i])) {
            snprintf(reason, sizeof(reason), "process %d is in no memory "
                     "cgroup of its own", targets[i].pid);
            return false;
        }
    }
    if (!make_swap()) {
        return false;
    }
    effect = swapped_out();
    return true;
}

/* memory.reclaim and memory.high, or what cgroup v1 has */
static void step_cgroup(void)
{
    for (int i = 0; i < target_count && !ending; i++) {
        char path[PATH_MAX + 64], value[32];

        snprintf(path, sizeof(path), "%s/memory.reclaim", targets[i].cgroup);
        snprintf(value, sizeof(value), "%zu", targets[i].bytes / 4);
        if (!access(path, W_OK)) {
            put(path, value);
            continue;
        }
        snprintf(path, sizeof(path), "%s/memory.usage_in_bytes",
                 targets[i].cgroup);
        unsigned long usage = get_number(path);
        snprintf(path, sizeof(path), "%s/memory.limit_in_bytes",
                 targets[i].cgroup);
        snprintf(value, sizeof(value), "%lu", usage * 3 / 4);
        put(path, value);               /* reclaims, or is refused */
        put(path, "-1");
    }
    nap(50);
}

static void end_swap(void)
{
    effect = swapped_out() - effect;
}

static bool start_drop(void)
{
    return can_write("/proc/sys/vm/drop_caches");
}

static void step_drop(void)
{
    effect += put("/proc/sys/vm/drop_caches", "3");
    nap(100);
}

/* Soft-dirty write-protects all pages, as checkpointing does. */
static bool start_soft_dirty(void)
{
    uint64_t entry = 0;
    volatile char *page = aligned_alloc(PAGE, PAGE);
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    bool ok;

    if (!page || fd < 0) {
        return cannot("/proc/self/pagemap");
    }
    *page = 1;
    ok = pread(fd, &entry, sizeof(entry),
               (uintptr_t)page / PAGE * sizeof(entry)) == sizeof(entry) &&
         entry >> 55 & 1;
    close(fd);
    free((void *)page);
    if (!ok) {
        snprintf(reason, sizeof(reason), "this kernel has no soft-dirty bits");
    }
    return ok;
}

static void clear_refs(const char *what)
{
    for (int i = 0; i < target_count; i++) {
        char path[64];

        snprintf(path, sizeof(path), "/proc/%d/clear_refs", targets[i].pid);
        effect += put(path, what);
    }
    nap(20);
}

static void step_soft_dirty(void)
{
    clear_refs("4");
}

static void step_referenced(void)
{
    clear_refs("1");
}

/* A page's frame, in bytes, to a file that takes the page away */
static void offline_one(const char *file)
{
    struct target *t = &targets[steps % target_count];
    size_t at = (size_t)random() % (t->bytes / PAGE) * PAGE;
    uint64_t entry = 0;
    char path[64], value[32];
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/pagemap", t->pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    if (pread(fd, &entry, sizeof(entry), (t->address + at) / PAGE *
              sizeof(entry)) == sizeof(entry) && entry >> 63) {
        snprintf(value, sizeof(value), "%#lx",
                 (unsigned long)(entry & ((1ULL << 55) - 1)) * PAGE);
        effect += put(file, value);
    }
    close(fd);
    nap(20);
}

/* No kernel does this: it is to see that a wrong page is found. */
static void step_damage(void)
{
    struct target *t = &targets[target_count - 1];
    uint32_t word = 0xdead;
    char path[64];
    int fd;

    if (!effect) {
        snprintf(path, sizeof(path), "/proc/%d/mem", t->pid);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
            effect += pwrite(fd, &word, sizeof(word), t->address +
                             t->bytes / 2 / PAGE * PAGE) == sizeof(word);
            close(fd);
        }
    }
    nap(50);
}

static bool start_soft_offline(void)
{
    return can_write(MEMORY "soft_offline_page");
}

/* Each one is lost until the next boot, so there are few. */
static void step_soft_offline(void)
{
    if (effect < 256) {
        offline_one(MEMORY "soft_offline_page");
    } else {
        nap(50);
    }
}

static bool start_poison(void)
{
    if (!poison_allowed) {
        snprintf(reason, sizeof(reason), "only with --poison");
        return false;
    }
    return can_write(MEMORY "hard_offline_page");
}

static void step_poison(void)
{
    if (!effect) {
        offline_one(MEMORY "hard_offline_page");
    } else {
        nap(50);
    }
}

static const struct kind {
    const char *name;
    bool (*start)(void);        /* false: cannot, and why is in reason */
    void (*step)(void);
    void (*end)(void);
    const char *effect;         /* what the number counts */
} kinds[] = {
    { "none", start_nothing, step_nothing, NULL, "nothing" },
    { "ksm", start_ksm, step_ksm, end_ksm,
      "pages merged at once, of all processes" },
    { "collapse", can_advise, step_collapse, NULL, "huge pages made or left" },
    { "khugepaged", start_khugepaged, step_nothing, end_khugepaged,
      "huge pages made" },
    { "compact", start_compact, step_compact, end_compact,
      "pages moved, of all processes" },
    { "cold", can_advise, step_cold, NULL, "pages advised" },
    { "pageout", start_pageout, step_pageout, end_swap,
      "pages swapped out, of all processes" },
    { "swapoff", start_pageout, step_swapoff, end_swap,
      "pages swapped out, of all processes" },
    { "cgroup", start_cgroup, step_cgroup, end_swap,
      "pages swapped out, of all processes" },
    { "referenced", start_nothing, step_referenced, NULL,
      "times references were cleared" },
    { "soft-dirty", start_soft_dirty, step_soft_dirty, NULL,
      "times soft-dirty bits were cleared" },
    { "move", start_move, step_move, NULL, "pages moved" },
    { "drop-caches", start_drop, step_drop, NULL, "times caches were dropped" },
    { "soft-offline", start_soft_offline, step_soft_offline, NULL,
      "pages taken away" },
    { "damage", start_nothing, step_damage, NULL, "words written" },
    { "poison", start_poison, step_poison, NULL, "pages poisoned" },
};

static void end_now(int sig)
{
    (void)sig;
    ending = 1;
}

static void add_target(const char *text)
{
    struct target *t = &targets[target_count];
    unsigned long address, bytes;
    int length = 0;

    if (target_count == MAX_TARGETS ||
        sscanf(text, "%d:%li:%li%n", &t->pid, (long *)&address,
               (long *)&bytes, &length) != 3 || text[length] ||
        address % PAGE || bytes < PAGE) {
        errx(2, "%s is not PID:ADDRESS:BYTES", text);
    }
    t->address = address;
    t->bytes = bytes;
    t->pidfd = syscall(SYS_pidfd_open, t->pid, 0);
    if (t->pidfd < 0) {
        err(1, "process %d", t->pid);
    }
    target_count++;
}

int main(int argc, char **argv)
{
    struct sigaction act = { .sa_handler = end_now };
    const struct kind *kind = NULL;
    bool can;
    int i = 1;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
        if (!strcmp(argv[i], "--list")) {
            for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
                puts(kinds[k].name);
            }
            return 0;
        } else if (!strcmp(argv[i], "--poison")) {
            poison_allowed = true;
        } else if (!strcmp(argv[i], "--swap") && i + 1 < argc) {
            swap_file = argv[++i];
        } else {
            errx(2, "no option %s", argv[i]);
        }
    }
    if (argc - i < 2) {
        errx(2, "usage: disturb [--swap FILE] [--poison] KIND "
             "PID:ADDRESS:BYTES...");
    }
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        if (!strcmp(kinds[k].name, argv[i])) {
            kind = &kinds[k];
        }
    }
    if (!kind) {
        errx(2, "no kind %s; --list tells which there are", argv[i]);
    }
    while (++i < argc) {
        add_target(argv[i]);
    }

    prctl(PR_SET_PDEATHSIG, SIGTERM);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGHUP, &act, NULL);
    signal(SIGPIPE, SIG_IGN);

    can = kind->start();
    if (can) {
        puts("ready");
        while (!ending) {
            kind->step();
            steps++;
        }
        if (kind->end) {
            kind->end();
        }
    }
    put_back();
    if (swap_on) {
        remove_swap();
    }
    if (!can) {
        printf("skip %s\n", reason);
        return 77;
    }
    printf("done %lu %lu %s\n", steps, effect, kind->effect);
    return 0;
}
