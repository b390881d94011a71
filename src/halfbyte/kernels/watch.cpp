// The largest anonymous memory of this process, by a thread that looks at /proc/self/statm again and again.
//
// Peaks of a step's loss or of a prompt's passes last some milliseconds, so it has to look that often. A thread of
// Python's that does so takes the interpreter's lock from the one at work each time: training took 12 to 16 % longer on
// two cores. This one takes a few microseconds and no lock of anybody's.
#include "common.h"

#if defined(__linux__)
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace halfbyte {
namespace {

class Watch {
public:
    Watch(int file, std::chrono::microseconds interval) : file_(file), thread_([this, interval] { run(interval); }) {}

    ~Watch() {
        {
            const std::lock_guard<std::mutex> guard(mutex_);
            stopped_ = true;
        }
        wake_.notify_one();
        thread_.join();
        close(file_);
    }

    // In pages, since the last call.
    int64_t take() {
        look();
        return peak_.exchange(0);
    }

private:
    void run(std::chrono::microseconds interval) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!wake_.wait_for(lock, interval, [this] { return stopped_; })) look();
    }

    // size, resident, shared, ...: pages, of which those that are resident and not shared are anonymous.
    void look() {
        char text[128];
        const ssize_t length = pread(file_, text, sizeof text - 1, 0);
        if (length <= 0) return;
        text[length] = 0;
        char* at = text;
        std::strtoll(at, &at, 10);
        const int64_t resident = std::strtoll(at, &at, 10), shared = std::strtoll(at, &at, 10);
        int64_t before = peak_.load();
        while (before < resident - shared && !peak_.compare_exchange_weak(before, resident - shared)) {
        }
    }

    const int file_;
    std::atomic<int64_t> peak_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    bool stopped_ = false;
    std::thread thread_;  // last: it begins when all else is there
};

}  // namespace
}  // namespace halfbyte

// Begin to look every `interval` microseconds; null where that can't be done.
HALFBYTE_API void* halfbyte_watch_begin(int64_t interval) {
    const int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (file < 0) return nullptr;
    try {
        return new halfbyte::Watch(file, std::chrono::microseconds(interval));
    } catch (...) {  // no thread to be had
        close(file);
        return nullptr;
    }
}

// The largest number of anonymous pages since it began, or since the last call.
HALFBYTE_API int64_t halfbyte_watch_take(void* watch) { return static_cast<halfbyte::Watch*>(watch)->take(); }

HALFBYTE_API void halfbyte_watch_end(void* watch) { delete static_cast<halfbyte::Watch*>(watch); }

#else
HALFBYTE_API void* halfbyte_watch_begin(int64_t) { return nullptr; }
HALFBYTE_API int64_t halfbyte_watch_take(void*) { return 0; }
HALFBYTE_API void halfbyte_watch_end(void*) {}
#endif
