/*
 * What a page request could take at best: 20 bytes there and 4104 back over
 * one TCP connection, beside a stream that takes all it gets over another.
 *
 *   rawlink serve ADDRESS PORT DSCP
 *   rawlink ask ADDRESS PORT SECONDS
 *
 * "serve" is the migration's source, "ask" its destination; their sockets have
 * the options that QEMU's have.  "ask" prints the average and the 99th
 * percentile of the answers' latency in us, and the stream's bytes per second;
 * "serve" ends with it.  IPv4 only.
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
#define UNSENT (128 * 1024)
#define PRIORITY 6              /* TC_PRIO_INTERACTIVE */

static volatile uint64_t streamed;

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

    while (all(fd, buf, sizeof(buf), 1)) {
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

int main(int argc, char **argv)
{
    struct sockaddr_in sa = { .sin_family = AF_INET };
    char buf[ANSWER] = "";
    pthread_t thread;
    int main_fd, fd;

    if (argc != 5 || (strcmp(argv[1], "serve") && strcmp(argv[1], "ask")) ||
        !inet_aton(argv[2], &sa.sin_addr)) {
        errx(2, "usage: rawlink serve ADDRESS PORT DSCP | "
             "ask ADDRESS PORT SECONDS");
    }
    sa.sin_port = htons(atoi(argv[3]));
    signal(SIGPIPE, SIG_IGN);

    if (!strcmp(argv[1], "serve")) {
        int listener = socket(AF_INET, SOCK_STREAM, 0);

        set(listener, SOL_SOCKET, SO_REUSEADDR, 1);
        if (bind(listener, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
            listen(listener, 2) < 0) {
            err(1, "%s port %s", argv[2], argv[3]);
        }
        main_fd = accept(listener, NULL, NULL);
        fd = accept(listener, NULL, NULL);
        set(main_fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT);
        if (atoi(argv[4])) {
            set(fd, IPPROTO_IP, IP_TOS, atoi(argv[4]) << 2);
        }
        set(fd, SOL_SOCKET, SO_PRIORITY, PRIORITY);
        pthread_create(&thread, NULL, stream_out, &main_fd);
        while (all(fd, buf, REQUEST, 0) && all(fd, buf, ANSWER, 1)) {
        }
    } else {
        double *took = calloc(MAX_ANSWERS, sizeof(*took)), sum = 0, start, end;
        uint64_t before;
        int n = 0;

        main_fd = do_connect(&sa);
        fd = do_connect(&sa);
        set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        pthread_create(&thread, NULL, stream_in, &main_fd);
        sleep(1);               /* until the stream is at its speed */
        before = streamed;
        start = now();
        end = start + atof(argv[4]);
        while (now() < end && n < MAX_ANSWERS) {
            struct timespec pause = { .tv_nsec = PAUSE_NS };
            double t = now();

            if (!all(fd, buf, REQUEST, 1) || !all(fd, buf, ANSWER, 0)) {
                errx(1, "the connection has ended");
            }
            took[n] = now() - t;
            sum += took[n++];
            nanosleep(&pause, NULL);
        }
        end = now();
        if (!n) {
            errx(1, "no answer");
        }
        qsort(took, n, sizeof(*took), compare);
        printf("%.1f %.1f %.0f\n", sum / n * 1e6, took[n * 99 / 100] * 1e6,
               (streamed - before) / (end - start));
    }
    /* The other side and the threads end with the connections */
    return 0;
}
