/* Records every system call that a program makes on a folder, from all of its threads, and lets chosen ones fail.

   tracer FOLDER CONTROL LOG COMMAND...

   The command runs in this process, so that its id is the caller's child; a grandchild traces it (ptrace, with a seccomp
   filter that stops it at calls on files only). CONTROL is a file with the fields below, which the caller maps and changes
   while the program runs. LOG gets a line for each call that has ended:

   ENTERED ENDED THREAD NAME RESULT ["PATH" ["PATH"]]

   ENTERED and ENDED are positions in one order over all threads: a call that ended before another was entered has the
   smaller position. Linux on x86-64 only. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the tracer reads the registers of x86-64"
#endif

/* The caller's wishes, and what has happened. */
struct control {
    int32_t mode;        /* 0: nothing; 1: let one call fail; 2: let that one and all later ones fail */
    int32_t at;          /* the number of the call that fails, from 1 */
    int32_t error;       /* an errno */
    int32_t changes_only; /* whether only calls that change something are counted */
    int32_t count;       /* calls while the mode was not 0, since the caller set this to 0 */
    int32_t failed;      /* calls that were made to fail */
    int32_t sync_delay_us; /* how long each sync waits before it begins */
    int32_t position;    /* the greatest position in the log */
    char what[256];      /* the first call that was made to fail */
};

enum kind { FD, PATH, AT, AT_AT };
struct call {
    int number;
    const char *name;
    enum kind kind;
    int changes;
    int is_sync;
};

/* AT: a folder's descriptor and a path; AT_AT: twice that; FD: a descriptor first. */
static const struct call CALLS[] = {
    {SYS_open, "open", PATH, 0, 0},         {SYS_openat, "openat", AT, 0, 0},
    {SYS_openat2, "openat2", AT, 0, 0},     {SYS_creat, "creat", PATH, 1, 0},
    {SYS_read, "read", FD, 0, 0},           {SYS_pread64, "pread64", FD, 0, 0},
    {SYS_readv, "readv", FD, 0, 0},         {SYS_preadv, "preadv", FD, 0, 0},
    {SYS_preadv2, "preadv2", FD, 0, 0},     {SYS_write, "write", FD, 1, 0},
    {SYS_pwrite64, "pwrite64", FD, 1, 0},   {SYS_writev, "writev", FD, 1, 0},
    {SYS_pwritev, "pwritev", FD, 1, 0},     {SYS_pwritev2, "pwritev2", FD, 1, 0},
    {SYS_fsync, "fsync", FD, 1, 1},         {SYS_fdatasync, "fdatasync", FD, 1, 1},
    {SYS_syncfs, "syncfs", FD, 1, 1},       {SYS_ftruncate, "ftruncate", FD, 1, 0},
    {SYS_fallocate, "fallocate", FD, 1, 0}, {SYS_rename, "rename", AT_AT, 1, 0},
    {SYS_renameat, "renameat", AT_AT, 1, 0}, {SYS_renameat2, "renameat2", AT_AT, 1, 0},
    {SYS_link, "link", AT_AT, 1, 0},        {SYS_linkat, "linkat", AT_AT, 1, 0},
    {SYS_unlink, "unlink", PATH, 1, 0},     {SYS_unlinkat, "unlinkat", AT, 1, 0},
    {SYS_rmdir, "rmdir", PATH, 1, 0},       {SYS_mkdir, "mkdir", PATH, 1, 0},
    {SYS_mkdirat, "mkdirat", AT, 1, 0},     {SYS_chmod, "chmod", PATH, 1, 0},
    {SYS_fchmod, "fchmod", FD, 1, 0},       {SYS_fchmodat, "fchmodat", AT, 1, 0},
    {SYS_utimensat, "utimensat", AT, 1, 0}, {SYS_stat, "stat", PATH, 0, 0},
    {SYS_lstat, "lstat", PATH, 0, 0},       {SYS_fstat, "fstat", FD, 0, 0},
    {SYS_newfstatat, "newfstatat", AT, 0, 0}, {SYS_statx, "statx", AT, 0, 0},
    {SYS_statfs, "statfs", PATH, 0, 0},     {SYS_fstatfs, "fstatfs", FD, 0, 0},
    {SYS_getdents64, "getdents64", FD, 0, 0}, {SYS_copy_file_range, "copy_file_range", FD, 1, 0},
    {SYS_sendfile, "sendfile", FD, 1, 0},   {SYS_flock, "flock", FD, 0, 0},
};
#define CALLS_COUNT (sizeof CALLS / sizeof *CALLS)
#define THREADS_MAX 4096

/* What a thread is in the middle of. */
struct thread {
    pid_t id;
    const struct call *call;
    int32_t entered;
    char paths[2 * PATH_MAX + 16];
};

static struct control *control;
static FILE *log_file;
static const char *folder;
static size_t folder_bytes;
static struct thread *threads[THREADS_MAX];

static void fail(const char *what) {
    perror(what);
    _exit(125);
}

static int is_inside(const char *path) {
    return strncmp(path, folder, folder_bytes) == 0 && (path[folder_bytes] == '/' || path[folder_bytes] == 0);
}

static void path_of_descriptor(pid_t thread, int descriptor, char *path) {
    char link[64];
    if (descriptor == AT_FDCWD) snprintf(link, sizeof link, "/proc/%d/cwd", thread);
    else snprintf(link, sizeof link, "/proc/%d/fd/%d", thread, descriptor);
    ssize_t bytes = readlink(link, path, PATH_MAX - 1);
    path[bytes < 0 ? 0 : bytes] = 0;
}

/* A text of the thread's memory; it ends before a page that cannot be read. */
static void read_text(pid_t thread, unsigned long address, char *text) {
    size_t read = 0;
    text[0] = 0;
    while (read < PATH_MAX - 1) {
        size_t page = 4096 - (address + read) % 4096;
        if (page > PATH_MAX - 1 - read) page = PATH_MAX - 1 - read;
        struct iovec to = {text + read, page}, from = {(void *)(address + read), page};
        ssize_t bytes = process_vm_readv(thread, &to, 1, &from, 1, 0);
        if (bytes <= 0) break;
        if (memchr(text + read, 0, (size_t)bytes)) return;
        read += (size_t)bytes;
    }
    text[read] = 0;
}

static void path_of_argument(pid_t thread, int at, unsigned long address, char *path) {
    char text[PATH_MAX];
    read_text(thread, address, text);
    if (text[0] == '/') {
        strcpy(path, text);
        return;
    }
    path_of_descriptor(thread, at, path);
    size_t bytes = strlen(path);
    if (text[0]) snprintf(path + bytes, PATH_MAX - bytes, "/%s", text);
}

/* The paths of a call in the folder, in quotes; returns whether there is one. */
static int paths_of(pid_t thread, const struct call *call, const struct user_regs_struct *registers, char *quoted) {
    char first[PATH_MAX], second[PATH_MAX] = "";
    int has_at = call->number == SYS_renameat || call->number == SYS_renameat2 || call->number == SYS_linkat;
    switch (call->kind) {
    case FD: path_of_descriptor(thread, (int)registers->rdi, first); break;
    case PATH: path_of_argument(thread, AT_FDCWD, registers->rdi, first); break;
    case AT: path_of_argument(thread, (int)registers->rdi, registers->rsi, first); break;
    case AT_AT:
        if (has_at) {
            path_of_argument(thread, (int)registers->rdi, registers->rsi, first);
            path_of_argument(thread, (int)registers->rdx, registers->r10, second);
        } else {
            path_of_argument(thread, AT_FDCWD, registers->rdi, first);
            path_of_argument(thread, AT_FDCWD, registers->rsi, second);
        }
    }
    if (!is_inside(first) && !is_inside(second)) return 0;
    quoted += sprintf(quoted, "\"%s\"", first);
    if (second[0]) sprintf(quoted, " \"%s\"", second);
    return 1;
}

static struct thread *thread_of(pid_t id) {
    struct thread **free_slot = NULL;
    for (size_t at = 0; at < THREADS_MAX; at++) {
        if (threads[at] && threads[at]->id == id) return threads[at];
        if (!threads[at] && !free_slot) free_slot = &threads[at];
    }
    if (!free_slot) fail("too many threads");
    *free_slot = calloc(1, sizeof **free_slot);
    (*free_slot)->id = id;
    return *free_slot;
}

static void forget(pid_t id) {
    for (size_t at = 0; at < THREADS_MAX; at++)
        if (threads[at] && threads[at]->id == id) {
            free(threads[at]);
            threads[at] = NULL;
        }
}

static int changes_something(const struct call *call, const struct user_regs_struct *registers) {
    unsigned long flags = call->number == SYS_open ? registers->rsi : call->number == SYS_openat ? registers->rdx : 0;
    return call->changes || (flags & (O_CREAT | O_TRUNC)) != 0;
}

static void note_end(const struct thread *thread, long result) {
    fprintf(log_file, "%d %d %d %s %ld %s\n", thread->entered, ++control->position, thread->id, thread->call->name, result, thread->paths);
}

/* A thread is about to make a call. Returns whether its end must be awaited. */
static int enter(pid_t id) {
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, id, 0, &registers)) return 0;
    const struct call *call = NULL;
    for (size_t at = 0; at < CALLS_COUNT && !call; at++)
        if ((unsigned long)CALLS[at].number == registers.orig_rax) call = &CALLS[at];
    struct thread *thread = thread_of(id);
    if (!call || !paths_of(id, call, &registers, thread->paths)) return 0;
    thread->call = call;
    if (call->is_sync && control->sync_delay_us > 0) usleep((useconds_t)control->sync_delay_us);
    thread->entered = ++control->position;
    if (control->mode == 0 || (control->changes_only && !changes_something(call, &registers))) return 1;
    int number = ++control->count;
    int fails = (control->mode == 1 && number == control->at) || (control->mode == 2 && number >= control->at);
    if (!fails) return 1;
    if (!control->failed++) snprintf(control->what, sizeof control->what, "%s %.200s", call->name, thread->paths);
    /* No call is made, and this is its result. */
    registers.orig_rax = (unsigned long)-1;
    registers.rax = (unsigned long)-control->error;
    ptrace(PTRACE_SETREGS, id, 0, &registers);
    note_end(thread, -control->error);
    return 0;
}

static void end(pid_t id) {
    struct user_regs_struct registers;
    if (!ptrace(PTRACE_GETREGS, id, 0, &registers)) note_end(thread_of(id), (long)registers.rax);
}

static void trace(pid_t traced) {
    int status;
    pid_t id;
    while ((id = waitpid(-1, &status, __WALL)) > 0) {
        if (!WIFSTOPPED(status)) {
            forget(id);
            if (id == traced) fflush(log_file);
            continue;
        }
        int signal_number = WSTOPSIG(status), event = status >> 16;
        long request = PTRACE_CONT;
        if (event == PTRACE_EVENT_SECCOMP) {
            request = enter(id) ? PTRACE_SYSCALL : PTRACE_CONT;
            signal_number = 0;
        } else if (signal_number == (SIGTRAP | 0x80)) {
            end(id);
            signal_number = 0;
        } else if (event == PTRACE_EVENT_STOP) {
            if (signal_number == SIGSTOP || signal_number == SIGTSTP) request = PTRACE_LISTEN;
            signal_number = 0;
        } else if (event) {
            signal_number = 0;
        }
        ptrace(request, id, 0, (long)signal_number);
    }
}

static void filter(void) {
    struct sock_filter program[4 + CALLS_COUNT + 2];
    size_t at = 0;
    program[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t call = 0; call < CALLS_COUNT; call++)
        program[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)CALLS[call].number, (unsigned char)(CALLS_COUNT - call), 0);
    program[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    struct sock_fprog whole = {(unsigned short)at, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("no_new_privs");
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole)) fail("seccomp");
}

static void open_control(const char *control_path, const char *log_path) {
    int descriptor = open(control_path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) fail(control_path);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (control == MAP_FAILED) fail("mmap");
    log_file = fopen(log_path, "ae");
    if (!log_file) fail(log_path);
    setvbuf(log_file, NULL, _IOLBF, 0);
}

int main(int count, char **words) {
    if (count < 5) return fprintf(stderr, "usage: tracer FOLDER CONTROL LOG COMMAND...\n"), 2;
    folder = words[1];
    folder_bytes = strlen(folder);
    int tracer_id[2], ready[2];
    if (pipe2(tracer_id, O_CLOEXEC) || pipe2(ready, O_CLOEXEC)) fail("pipe");
    pid_t traced = getpid(), between = fork();
    if (between < 0) fail("fork");
    if (between == 0) {
        pid_t tracer = fork();
        if (tracer != 0) _exit(tracer < 0);
        /* What the program writes to ends with the program. */
        int nothing = open("/dev/null", O_RDWR);
        dup2(nothing, 0), dup2(nothing, 1), dup2(nothing, 2);
        tracer = getpid();
        open_control(words[2], words[3]);
        if (write(tracer_id[1], &tracer, sizeof tracer) < 0 || read(ready[0], &tracer, 1) < 0) _exit(1);
        long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
        if (ptrace(PTRACE_SEIZE, traced, 0, options)) kill(traced, SIGKILL), _exit(1);
        /* Now the program may begin: it waits for the end of this pipe. */
        close(tracer_id[1]);
        trace(traced);
        _exit(0);
    }
    pid_t tracer = 0;
    close(tracer_id[1]);
    if (read(tracer_id[0], &tracer, sizeof tracer) != sizeof tracer) fail("the tracer did not start");
    waitpid(between, NULL, 0);
    prctl(PR_SET_PTRACER, tracer, 0, 0, 0);
    if (write(ready[1], "r", 1) < 0) fail("write");
    while (read(tracer_id[0], &tracer, 1) > 0) {}
    filter();
    execvp(words[4], words + 4);
    fail(words[4]);
}
