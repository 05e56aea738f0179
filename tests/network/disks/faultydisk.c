/* A disk that can be told to fail: a FUSE file system with the file `disk`, for losetup, and the file `ctl`, to which is written:
 * `ok`, `eio` (everything fails), `refuse` (writes fail), `hang` (nothing is answered), `slow MS` (a request takes so long, 200 ms
 * without a number), `bad FROM TO` (reads of these bytes fail) or `lose FROM TO` (writes to them come to nothing).
 *     faultydisk BACKING BYTES MOUNTPOINT */
#define FUSE_USE_VERSION 35
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DISK = 2, CTL = 3, SLOW_MS = 200 };
static char mode[8] = "ok";
static long long from, to; /* the numbers behind it */
static int backing;
static off_t size;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static int is_said(const char *what) { return !strcmp(mode, what); }
/* What the disk answers now to reading (or else writing or syncing) these bytes: 0, or an errno. Waits while it hangs, and a while
 * if it is slow. What is lost of a write is `lost[0]` to `lost[1]`. */
static int answer(fuse_ino_t ino, int reads, off_t begin, off_t end, off_t lost[2]) {
    if (ino != DISK) return 0;
    pthread_mutex_lock(&lock);
    while (is_said("hang")) pthread_cond_wait(&changed, &lock);
    int touches = begin < to && from < end;
    int error = is_said("eio") || (is_said("refuse") && !reads) || (is_said("bad") && reads && touches) ? EIO : 0;
    long long slow_ms = !is_said("slow") ? 0 : from ? from : SLOW_MS;
    lost[0] = lost[1] = end;
    if (is_said("lose") && touches) {
        lost[0] = begin > from ? begin : from;
        lost[1] = end < to ? end : to;
    }
    pthread_mutex_unlock(&lock);
    if (slow_ms) usleep(slow_ms * 1000);
    return error;
}
static void fill(fuse_ino_t ino, struct stat *st) {
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_nlink = 1;
    st->st_mode = ino == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0600;
    st->st_size = ino == DISK ? size : 0;
}
static void f_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param entry = { .attr_timeout = 1000, .entry_timeout = 1000 };
    (void)parent;
    entry.ino = !strcmp(name, "disk") ? DISK : !strcmp(name, "ctl") ? CTL : 0;
    if (!entry.ino) { fuse_reply_err(req, ENOENT); return; }
    fill(entry.ino, &entry.attr);
    fuse_reply_entry(req, &entry);
}
static void f_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    struct stat st;
    (void)fi;
    fill(ino, &st);
    fuse_reply_attr(req, &st, 1000);
}
static void f_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int set, struct fuse_file_info *fi) {
    (void)attr; (void)set;
    f_getattr(req, ino, fi);
}
static void f_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    (void)ino;
    fi->direct_io = 1;
    fuse_reply_open(req, fi);
}
static void f_read(fuse_req_t req, fuse_ino_t ino, size_t length, off_t offset, struct fuse_file_info *fi) {
    off_t lost[2];
    int error = answer(ino, 1, offset, offset + length, lost);
    (void)fi;
    if (error) { fuse_reply_err(req, error); return; }
    char *buffer = malloc(length);
    ssize_t count = ino == DISK ? pread(backing, buffer, length, offset) : 0;
    if (count < 0) fuse_reply_err(req, errno); else fuse_reply_buf(req, buffer, count);
    free(buffer);
}
/* Stores the bytes from *begin* to *end* of what is to be written at *offset*. */
static int is_stored(const char *data, off_t offset, off_t begin, off_t end) {
    return begin >= end || pwrite(backing, data + (begin - offset), end - begin, begin) == end - begin;
}
static void f_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t length, off_t offset, struct fuse_file_info *fi) {
    (void)fi;
    if (ino == CTL) {
        pthread_mutex_lock(&lock);
        char said[64] = "";
        memcpy(said, data, length < sizeof said ? length : sizeof said - 1);
        from = to = 0;
        sscanf(said, "%7s %lld %lld", mode, &from, &to);
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        fuse_reply_write(req, length);
        return;
    }
    off_t end = offset + length, lost[2];
    int error = answer(ino, 0, offset, end, lost);
    if (!error && !is_stored(data, offset, offset, lost[0])) error = EIO;
    if (!error && !is_stored(data, offset, lost[1], end)) error = EIO;
    if (error) fuse_reply_err(req, error); else fuse_reply_write(req, length);
}
static void f_fsync(fuse_req_t req, fuse_ino_t ino, int data_only, struct fuse_file_info *fi) {
    off_t lost[2];
    (void)data_only; (void)fi;
    fuse_reply_err(req, answer(ino, 0, 0, 0, lost));
}
static const struct fuse_lowlevel_ops operations = {
    .lookup = f_lookup, .getattr = f_getattr, .setattr = f_setattr, .open = f_open, .read = f_read, .write = f_write, .fsync = f_fsync,
};

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    size = atoll(argv[2]);
    backing = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (backing < 0 || ftruncate(backing, size)) return 1;
    char *arguments[] = { argv[0], "-o", "fsname=faultydisk" };
    struct fuse_args args = FUSE_ARGS_INIT(3, arguments);
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (!session || fuse_session_mount(session, argv[3])) return 1;
    struct fuse_loop_config config = { .clone_fd = 0, .max_idle_threads = 10 };
    int result = fuse_session_loop_mt(session, &config);
    fuse_session_unmount(session);
    return result;
}
