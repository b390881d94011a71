// Buffers that a thread keeps between calls: fresh pages in every call would cost more than what they hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace halfbyte {

// One of the calling thread's buffers, which grows.
class Buffer {
public:
    Buffer() : next_(first_) { first_ = this; }
    ~Buffer() { release(); }  // the thread ends, and nobody goes through its buffers any more
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* of(size_t bytes) {
        if (size_ < bytes) {
            release();
            data_ = ::operator new(bytes, std::align_val_t(64));
            size_ = bytes;
        }
        return data_;
    }

    // Frees all that the calling thread keeps.
    static void release_all() {
        for (Buffer* buffer = first_; buffer; buffer = buffer->next_) buffer->release();
    }

private:
    void release() {
        ::operator delete(data_, std::align_val_t(64));
        data_ = nullptr;
        size_ = 0;
    }

    static inline thread_local Buffer* first_ = nullptr;
    Buffer* const next_;
    void* data_ = nullptr;
    size_t size_ = 0;
};

namespace {

// The buffer `kName` of the file that calls, with room for `count` of T.
template <int kName, typename T>
T* scratch(int64_t count) {
    static thread_local Buffer buffer;
    return static_cast<T*>(buffer.of(size_t(count) * sizeof(T)));
}

}  // namespace
}  // namespace halfbyte
