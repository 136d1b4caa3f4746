/*
 * A guest whose memory is exactly known at every moment, for scripts/stress.
 *
 * It has PAGES pages from FROM on, and writes to them in turn, for ever: in
 * round N (the first is 1) a page's first and last words become N.  All else
 * in a page is FILLER.  Then it counts WRITTEN up.  So WRITTEN, and nothing
 * else, tells what has to be in every page.  Pages of one round are alike, so
 * that there is something to be merged.
 *
 * Before it writes it looks if the page is as it left it, and counts in BAD
 * those that are not.
 *
 * Multiboot; protected mode, no paging.  What to do is loaded to PARAMS before
 * the start; what was done is to be read at STATUS, in a page of its own.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
        .set    PARAMS, 0x200000
        .set    P_FROM, PARAMS + 0
        .set    P_TO, PARAMS + 4
        .set    P_TICKS, PARAMS + 8     /* of the TSC, for each page */

        .set    STATUS, 0x201000
        .set    S_READY, STATUS + 0     /* 1 when all is filled */
        .set    S_WRITTEN, STATUS + 4   /* pages written since */
        .set    S_BAD, STATUS + 8       /* pages with wrong contents */
        .set    S_WHERE, STATUS + 12    /* the last of these */

        .set    PAGE, 4096
        .set    FILLER, 0x5a5a5a5a
        .set    LATE, 10000000          /* ticks that are not caught up */

        .section .multiboot, "a"
        .balign 4
        .long   0x1badb002, 0, -0x1badb002

        .text
        .code32
        .globl  _start
_start: cli
        cld
        mov     P_FROM, %edi
fill:   mov     %edi, %esi
        mov     $FILLER, %eax
        mov     $PAGE / 4, %ecx
        rep stosl
        movl    $0, (%esi)
        movl    $0, PAGE - 4(%esi)
        cmp     P_TO, %edi
        jb      fill
        movl    $1, S_READY

        xor     %ebx, %ebx              /* what the pages have now */
        rdtsc
        mov     %eax, %ebp              /* when the next page is due */
again:  mov     P_FROM, %esi
page:   cmp     %ebx, (%esi)
        jne     bad
        cmp     %ebx, PAGE - 4(%esi)
        jne     bad
write:  lea     1(%ebx), %eax
        mov     %eax, (%esi)
        mov     %eax, PAGE - 4(%esi)
        incl    S_WRITTEN
        add     $PAGE, %esi
        add     P_TICKS, %ebp
1:      rdtsc
        mov     %eax, %ecx
        sub     %ebp, %ecx
        js      1b
        cmp     $LATE, %ecx
        jbe     2f
        mov     %eax, %ebp
2:      cmp     P_TO, %esi
        jb      page
        inc     %ebx
        jmp     again

bad:    incl    S_BAD
        mov     %esi, S_WHERE
        jmp     write
