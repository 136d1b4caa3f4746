/*
 * A wire with a length: what goes in at one end comes out at the other so
 * much later, in order, in both directions.
 *
 *   delay NETNS DEVICE NETNS DEVICE MICROSECONDS
 *
 * makes a tun device in each of the two network namespaces (of "ip netns") and
 * prints "ready"; what is sent on one of them is held for MICROSECONDS and
 * arrives at the other.  The devices go when it ends.  A line on standard
 * input is answered by one:
 *
 *   cut    drop everything, also what is on its way; no end is told: "cut"
 *   mend   let everything pass again: "mended"
 *   lost   how many packets did not fit so far: "lost N"
 *
 * and the end of standard input ends it.  At most QUEUE bytes are on their way
 * in each direction; what does not fit is dropped.  Packets of TCP of up to
 * 64 KiB pass whole, if the devices are given them.  Its threads run before
 * all that is not real-time (SCHED_FIFO), if they may; for the last EARLY ns
 * they do not sleep.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define QUEUE (16 << 20)
#define PACKET (80 << 10)       /* more than any, with its header */
#define EARLY 50000             /* ns; waking up takes about that in a VM */

struct packet {
    uint64_t due;               /* ns */
    uint32_t size;              /* 0: the rest of the queue is not used */
    unsigned era;               /* when it came in */
    char data[];
};

struct direction {
    int from, to;
    char *queue;
    size_t first, used;         /* bytes; what is used may wrap around */
    uint64_t lost;
};

static uint64_t delay;          /* ns */
/* Odd while the wire is cut.  A packet gets through in the era it came in. */
static unsigned era;

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static size_t footprint(size_t size)
{
    /* so that there is room for a header up to the queue's very end */
    return (2 * sizeof(struct packet) - 1 + size) / sizeof(struct packet) *
           sizeof(struct packet);
}

/* Where the next packet can go to, in one piece; NULL if it cannot. */
static struct packet *room(struct direction *d)
{
    size_t end = (d->first + d->used) % QUEUE;
    struct packet *p = (struct packet *)(d->queue + end);

    if (d->used && end <= d->first) {
        return d->first - end > PACKET ? p : NULL;
    }
    if (QUEUE - end > PACKET) {
        return p;
    }
    if (d->first <= PACKET) {
        return NULL;
    }
    p->size = 0;
    d->used += QUEUE - end;
    return (struct packet *)d->queue;
}

/* Returns whether there was one. */
static int packet_in(struct direction *d)
{
    static __thread char dropped[PACKET];
    struct packet *p = room(d);
    ssize_t n = read(d->from, p ? p->data : dropped,
                     PACKET - sizeof(struct packet));
    unsigned e = __atomic_load_n(&era, __ATOMIC_SEQ_CST);

    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        err(1, "read");
    }
    if (n <= 0) {
        return 0;
    }
    if (!p) {
        __atomic_add_fetch(&d->lost, 1, __ATOMIC_RELAXED);
    } else if (e % 2 == 0) {
        p->due = now_ns() + delay;
        p->size = n;
        p->era = e;
        d->used += footprint(n);
    }
    return 1;
}

/* Send on what is due; returns when the next one is, 0 if there is none. */
static uint64_t packets_out(struct direction *d)
{
    while (d->used) {
        struct packet *p = (struct packet *)(d->queue + d->first);

        if (!p->size) {
            d->used -= QUEUE - d->first;
            d->first = 0;
            continue;
        }
        if (p->due > now_ns()) {
            return p->due;
        }
        if (p->era == __atomic_load_n(&era, __ATOMIC_SEQ_CST) &&
            write(d->to, p->data, p->size) < 0) {
            /* Its device is down: as with any wire the packet is gone. */
        }
        d->used -= footprint(p->size);
        d->first = (d->first + footprint(p->size)) % QUEUE;
    }
    return 0;
}

static void *forward(void *opaque)
{
    struct direction *d = opaque;
    struct sched_param param = { .sched_priority = 1 };

    pthread_setschedparam(pthread_self(), SCHED_FIFO, &param);
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        struct pollfd pfd = { d->from, POLLIN, 0 };
        struct timespec wait;
        uint64_t due, now;

        /* one in, then what is due, so that neither waits for the other */
        if (packet_in(d)) {
            packets_out(d);
            continue;
        }
        due = packets_out(d);
        now = now_ns() + EARLY;
        if (due && due <= now) {
            continue;
        }
        wait.tv_sec = (due - now) / 1000000000;
        wait.tv_nsec = (due - now) % 1000000000;
        ppoll(&pfd, 1, due ? &wait : NULL, NULL);
    }
    return NULL;
}

static int open_end(const char *netns, const char *device)
{
    struct ifreq req = { .ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR };
    char path[256];
    int ns, fd;

    snprintf(path, sizeof(path), "/run/netns/%s", netns);
    ns = open(path, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0) {
        err(1, "%s", path);
    }
    close(ns);
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        err(1, "/dev/net/tun");
    }
    snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", device);
    if (ioctl(fd, TUNSETIFF, &req) < 0 ||
        ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 |
              TUN_F_TSO_ECN) < 0) {
        err(1, "%s in %s", device, netns);
    }
    return fd;
}

int main(int argc, char **argv)
{
    struct direction there = { 0 }, back = { 0 };
    pthread_t thread;
    char line[16];

    if (argc != 6) {
        errx(2, "usage: delay NETNS DEVICE NETNS DEVICE MICROSECONDS");
    }
    delay = strtoull(argv[5], NULL, 10) * 1000;
    there.from = back.to = open_end(argv[1], argv[2]);
    there.to = back.from = open_end(argv[3], argv[4]);
    there.queue = malloc(QUEUE);
    back.queue = malloc(QUEUE);
    if (!there.queue || !back.queue ||
        pthread_create(&thread, NULL, forward, &there) ||
        pthread_create(&thread, NULL, forward, &back)) {
        errx(1, "no memory or no thread");
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ready\n");
    while (fgets(line, sizeof(line), stdin)) {
        unsigned e = __atomic_load_n(&era, __ATOMIC_SEQ_CST);

        if (!strcmp(line, "cut\n")) {
            __atomic_store_n(&era, e | 1, __ATOMIC_SEQ_CST);
            printf("cut\n");
        } else if (!strcmp(line, "mend\n")) {
            __atomic_store_n(&era, e + e % 2, __ATOMIC_SEQ_CST);
            printf("mended\n");
        } else if (!strcmp(line, "lost\n")) {
            printf("lost %" PRIu64 "\n",
                   __atomic_load_n(&there.lost, __ATOMIC_RELAXED) +
                   __atomic_load_n(&back.lost, __ATOMIC_RELAXED));
        } else {
            errx(2, "cut, mend or lost");
        }
    }
    return 0;
}
