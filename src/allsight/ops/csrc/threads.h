// Work shared between the threads of PyTorch's own OpenMP pool.
#pragma once

#include <cstdint>
#include <cstring>

namespace allsight {

// Call work(context, thread, threads) on up to `threads` threads and wait for all of them. The pool is looked up at
// run time: linking another copy of OpenMP would start a second pool that fights the first one. Serial without a
// pool, for one thread, and in a forked child, where the parent's pool is gone.
void run_on_threads(int64_t threads, void (*work)(void *, int64_t, int64_t), void *context);

// work(first, end): the part of `units` units that each thread does.
template <class Work> void share(int64_t threads, int64_t units, Work work) {
    struct Context {
        Work &work;
        int64_t units;
    } context{work, units};
    run_on_threads(
        threads < units ? threads : units,
        [](void *pointer, int64_t thread, int64_t count) {
            Context &c = *(Context *)pointer;
            c.work(c.units * thread / count, c.units * (thread + 1) / count);
        },
        &context);
}

// The slices (groups or heads) of all images, shared so that each slice of an image belongs to one thread:
// work(each) may set itself up and then calls each(body); body(image, first slice, end) runs once per image.
template <class Work> void share_slices(int64_t threads, int64_t images, int64_t slices, Work work) {
    share(threads, images * slices, [&](int64_t first, int64_t end) {
        work([=](auto body) {
            for (int64_t image = first / slices; image * slices < end; ++image) {
                const int64_t start = image * slices;
                body(image, first > start ? first - start : 0, end - start < slices ? end - start : slices);
            }
        });
    });
}

// Set `count` channels of each pixel to zero: done for what is added to next, it is then in the cache.
template <class T> void clear(T *first, int64_t pixels, int64_t count, int64_t pixel_step) {
    if (count == pixel_step) count *= pixels, pixels = pixels > 0;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) std::memset(first + pixel * pixel_step, 0, (size_t)count * sizeof(T));
}

} // namespace allsight
