/* Preloaded into a node: fsync and fdatasync fail with EIO while the file named by FSYNC_FAULT exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

typedef int (*sync_call)(int);

static int faulty(void) {
    const char *trigger = getenv("FSYNC_FAULT");
    return trigger != NULL && access(trigger, F_OK) == 0;
}

static int call(const char *name, int descriptor) {
    if (faulty()) {
        errno = EIO;
        return -1;
    }
    return ((sync_call)dlsym(RTLD_NEXT, name))(descriptor);
}

int fsync(int descriptor) { return call("fsync", descriptor); }
int fdatasync(int descriptor) { return call("fdatasync", descriptor); }
