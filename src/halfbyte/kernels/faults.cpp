// What a process says when a mapped file loses its pages: one message and exit code 1 in place of "Bus error".
//
// A model's weights are mapped, not read, so a file that was cut, or a disk that refuses, shows in the midst of a
// kernel as SIGBUS. By then only what is async-signal-safe may be called: the message is prepared, and which file it
// was is read from /proc/self/maps where there is one. SIGBUS of any other cause (sent by a process, bad alignment,
// broken memory, an address that belongs to no file, shared memory that is full) gets the action that stood before.
// Linux tells these causes apart by the signal's code; macOS gives one code for all faults, so there it is taken to be
// a file, and said to be no more than likely.
//
// Rejected: to go on. The kernel that was at work would have to be unwound through code that knows no exceptions.
#include "common.h"

#if !defined(_WIN32)
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace halfbyte {
namespace {

constexpr size_t kRoom = 8192;
enum Found { kFile, kNoFile, kUnknown };

bool may_be_a_file(int code) {
#if defined(__linux__)
    return code == BUS_ADRERR;
#else
    return code > 0;  // not sent
#endif
}

char head[kRoom], place[kRoom], tail[kRoom];  // the message; `place` stands in it where the file is not known
char path[kRoom], chunk[4096];                // of the one thread that is in `find`
struct sigaction former;
std::atomic_flag busy = ATOMIC_FLAG_INIT;

void keep(char* room, const char* text) {
    std::strncpy(room, text, kRoom - 1);
    room[kRoom - 1] = 0;
}

void say(const char* text) {
    size_t left = std::strlen(text);
    while (left > 0) {
        const ssize_t written = write(STDERR_FILENO, text, left);
        if (written < 0 && errno != EINTR) return;
        if (written > 0) text += written, left -= size_t(written);
    }
}

// Memory that processes share has a name there, too, but is no file that somebody could put back.
bool is_shared_memory() {
    for (const char* begin : {"/dev/shm/", "/memfd:", "/SYSV", "/anon_hugepage", "/dev/zero"})
        if (std::strncmp(path, begin, std::strlen(begin)) == 0) return true;
    return false;
}

int digit(char letter) {
    if (letter >= '0' && letter <= '9') return letter - '0';
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

// Which file is mapped at `address`: its name goes to `path`. A line is "first-last rwxp offset device inode /a/file".
Found find(uintptr_t address) {
    const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (maps < 0) return kUnknown;
    uintptr_t bounds[2] = {0, 0};
    int field = 0;
    size_t length = 0;
    Found found = kUnknown;
    for (ssize_t got; found == kUnknown && (got = read(maps, chunk, sizeof chunk)) > 0;) {
        for (ssize_t i = 0; i < got && found == kUnknown; ++i) {
            const char letter = chunk[i];
            if (letter == '\n') {
                path[length] = 0;
                if (bounds[0] <= address && address < bounds[1]) found = length > 0 && !is_shared_memory() ? kFile : kNoFile;
                bounds[0] = bounds[1] = 0;
                field = 0, length = 0;
            } else if (field < 2 && digit(letter) >= 0) {
                bounds[field] = bounds[field] << 4 | uintptr_t(digit(letter));
            } else if (field < 2) {
                ++field;  // the hyphen, or the space after the second address
            } else if ((length > 0 || letter == '/') && length < kRoom - 1) {
                path[length++] = letter < 0x20 && letter >= 0 ? '?' : letter == 0x7f ? '?' : letter;
            }
        }
    }
    close(maps);
    return found;
}

void on_sigbus(int, siginfo_t* info, void*) {
    const int kept = errno;
    while (busy.test_and_set()) poll(nullptr, 0, 1);  // another thread's; where it is a file's fault, it ends them all
    if (may_be_a_file(info->si_code)) {
        const Found found = find(reinterpret_cast<uintptr_t>(info->si_addr));
        if (found != kNoFile) {
            say(head), say(found == kFile ? path : place), say(tail);
            _exit(1);
        }
    }
    sigaction(SIGBUS, &former, nullptr);
    if (info->si_code <= 0) raise(SIGBUS);  // it was sent; a fault comes again by itself
    busy.clear();
    errno = kept;
}

}  // namespace
}  // namespace halfbyte

using namespace halfbyte;

// Installs the handler, once. The message is `before`, the file (where it is not known: `where`) and `after`; a later
// call changes it. Returns whether it is installed.
HALFBYTE_API int halfbyte_explain_lost_pages(const char* before, const char* where, const char* after) {
    keep(head, before), keep(place, where), keep(tail, after);
    struct sigaction action = {}, standing = {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, nullptr, &standing) != 0) return 0;
    if ((standing.sa_flags & SA_SIGINFO) && standing.sa_sigaction == on_sigbus) return 1;
    former = standing;
    return sigaction(SIGBUS, &action, nullptr) == 0;
}
#else
// Windows raises an exception of its own for such a page.
HALFBYTE_API int halfbyte_explain_lost_pages(const char*, const char*, const char*) { return 0; }
#endif
