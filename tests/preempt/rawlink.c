/*
 * What a page request could take at best: 20 bytes there and 4104 back over
 * one TCP connection, beside a stream over another.
 *
 *   rawlink serve ADDRESS PORT DSCP STREAM
 *   rawlink ask ADDRESS PORT SECONDS IN_FLIGHT
 *
 * "serve" is the migration's source, "ask" its destination; their sockets have
 * the options that QEMU's have.  STREAM is in MB/s; 0: all that it gets.
 * IN_FLIGHT requests wait for an answer at any time, as those of so many vCPUs
 * that do nothing else; 0: one, and none for 0.5 ms after each answer.
 * "ask" prints the average, the median and the 99th percentile of the answers'
 * latency in us, and the stream's bytes per second; "serve" ends with it.
 * IPv4 only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST 20
#define ANSWER 4104
#define PAUSE_NS 500000         /* 2000 requests per second, as the guest */
#define MAX_ANSWERS 1000000
#define MAX_IN_FLIGHT 64
#define UNSENT (128 * 1024)
#define PRIORITY 6              /* TC_PRIO_INTERACTIVE */

static volatile uint64_t streamed;
static double stream_rate;      /* bytes per second; 0: no limit */

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void set(int fd, int level, int option, int value)
{
    if (setsockopt(fd, level, option, &value, sizeof(value)) < 0) {
        err(1, "setsockopt %d %d", level, option);
    }
}

/* Returns 0 at the end of the stream. */
static int all(int fd, char *buf, size_t len, int out)
{
    while (len) {
        ssize_t n = out ? write(fd, buf, len) : read(fd, buf, len);

        if (n <= 0) {
            return 0;
        }
        buf += n;
        len -= n;
    }
    return 1;
}

static void *stream_out(void *opaque)
{
    static char buf[1 << 17];
    int fd = *(int *)opaque;
    double due = now();

    while (all(fd, buf, sizeof(buf), 1)) {
        if (stream_rate) {
            due += sizeof(buf) / stream_rate;
            if (due > now()) {
                usleep((due - now()) * 1e6);
            } else {
                due = now();    /* what was missed is not made up for */
            }
        }
    }
    return NULL;
}

static void *stream_in(void *opaque)
{
    static char buf[1 << 17];
    int fd = *(int *)opaque;
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        streamed += n;
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static int do_connect(struct sockaddr_in *sa)
{
    for (int i = 0; i < 100; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        if (connect(fd, (struct sockaddr *)sa, sizeof(*sa)) == 0) {
            return fd;
        }
        close(fd);
        usleep(20000);
    }
    err(1, "connect");
}

static void serve(struct sockaddr_in *sa, int dscp)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), main_fd, fd;
    char buf[ANSWER] = "";
    pthread_t thread;

    set(listener, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(listener, (struct sockaddr *)sa, sizeof(*sa)) < 0 ||
        listen(listener, 2) < 0) {
        err(1, "bind");
    }
    main_fd = accept(listener, NULL, NULL);
    fd = accept(listener, NULL, NULL);
    set(main_fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT);
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (dscp) {
        set(fd, IPPROTO_IP, IP_TOS, dscp << 2);
    }
    set(fd, SOL_SOCKET, SO_PRIORITY, PRIORITY);
    pthread_create(&thread, NULL, stream_out, &main_fd);
    while (all(fd, buf, REQUEST, 0) && all(fd, buf, ANSWER, 1)) {
    }
}

static void ask(struct sockaddr_in *sa, double seconds, int in_flight)
{
    int main_fd = do_connect(sa), fd = do_connect(sa);
    double *took = calloc(MAX_ANSWERS, sizeof(*took)), sum = 0, start, end;
    double asked[MAX_IN_FLIGHT];
    int many = in_flight ? in_flight : 1;
    struct timespec pause = { .tv_nsec = PAUSE_NS };
    char buf[ANSWER] = "";
    pthread_t thread;
    uint64_t before;
    int n = 0;

    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    pthread_create(&thread, NULL, stream_in, &main_fd);
    sleep(1);                   /* until the stream is at its speed */
    before = streamed;
    start = now();
    end = start + seconds;
    for (int i = 0; now() < end && n < MAX_ANSWERS; i++) {
        /* the answers are in order, so that this one's is as old as can be */
        double *slot = &asked[i % many];

        if (i >= many) {
            if (!all(fd, buf, ANSWER, 0)) {
                errx(1, "the connection has ended");
            }
            took[n] = now() - *slot;
            sum += took[n++];
            if (!in_flight) {
                nanosleep(&pause, NULL);
            }
        }
        *slot = now();
        if (!all(fd, buf, REQUEST, 1)) {
            errx(1, "the connection has ended");
        }
    }
    end = now();
    if (!n) {
        errx(1, "no answer");
    }
    qsort(took, n, sizeof(*took), compare);
    printf("%.1f %.1f %.1f %.0f\n", sum / n * 1e6, took[n / 2] * 1e6,
           took[n * 99 / 100] * 1e6, (streamed - before) / (end - start));
}

int main(int argc, char **argv)
{
    struct sockaddr_in sa = { .sin_family = AF_INET };
    int serves = argc > 1 && !strcmp(argv[1], "serve");

    if (argc != 6 || (!serves && strcmp(argv[1], "ask")) ||
        !inet_aton(argv[2], &sa.sin_addr) ||
        (!serves && (atoi(argv[5]) < 0 || atoi(argv[5]) > MAX_IN_FLIGHT))) {
        errx(2, "usage: rawlink serve ADDRESS PORT DSCP STREAM | "
             "ask ADDRESS PORT SECONDS IN_FLIGHT (0 to %d)", MAX_IN_FLIGHT);
    }
    sa.sin_port = htons(atoi(argv[3]));
    signal(SIGPIPE, SIG_IGN);
    if (serves) {
        stream_rate = atof(argv[5]) * 1e6;
        serve(&sa, atoi(argv[4]));
    } else {
        ask(&sa, atof(argv[4]), atoi(argv[5]));
    }
    /* The other side and the threads end with the connections */
    return 0;
}
