// What is there once for all levels: which of them this processor runs, threads, memory, times.
// Compiled for any processor of its kind.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include <pthread.h>

#include "table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dspark {
namespace {

// ------------------------------------------------------------------------------------- threads

using Moment = std::chrono::steady_clock;

double seconds_since(Moment::time_point start) {
    return std::chrono::duration<double>(Moment::now() - start).count();
}

void rest() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Looks that are worth more than to sleep and be woken: about 30 microseconds. Whoever has found
// nothing by then leaves the core to others.
constexpr int LOOKS = 1000;

// Threads that share work out in small parts: whoever is free takes the next one, so a thread whose
// core another program has taken holds nobody up for longer than its part.
//
// Where waiting for such a part becomes the rule, fewer threads work for a while: a crowded machine
// is never slower for having more of them.
class Pool {
   public:
    void run(int threads, long count, long grain, Work work, const void* context) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        threads = mine.owns_lock() ? std::min(threads, allowed()) : 1;
        if (threads < 2) return work(context, 0, count);
        while (static_cast<int>(workers_.size()) < threads - 1) hire();
        const auto start = Moment::now();
        publish(threads, count, grain, work, context);
        help(ticket_.load(std::memory_order_relaxed) >> 32);
        const auto waiting = Moment::now();
        wait(count);
        judge(seconds_since(start), seconds_since(waiting));
    }

   private:
    // A ticket: the number of the job, and how much of it nobody has taken yet.
    static constexpr uint64_t REST = 0xffffffffu;

    void publish(int threads, long count, long grain, Work work, const void* context) {
        work_.store(work, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        count_.store(count, std::memory_order_relaxed);
        grain_.store(grain, std::memory_order_relaxed);
        threads_.store(threads, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        ticket_.store(job << 32 | static_cast<uint64_t>(count), std::memory_order_seq_cst);
        if (sleeping_.load(std::memory_order_seq_cst)) {
            std::lock_guard<std::mutex> lock(door_);
            called_.notify_all();
        }
    }

    // Takes parts of a job until none is left: large ones first, so that few are needed, then
    // single grains, so that all end together.
    void help(uint64_t job) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (ticket >> 32 == job && (ticket & REST)) {
            const long left = static_cast<long>(ticket & REST);
            const long grain = grain_.load(std::memory_order_relaxed);
            const long share = left / (2 * threads_.load(std::memory_order_relaxed) * grain);
            const long size = std::min(left, std::max(share, 1L) * grain);
            if (!ticket_.compare_exchange_weak(ticket, ticket - size, std::memory_order_acq_rel))
                continue;
            const long begin = count_.load(std::memory_order_relaxed) - left;
            work_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), begin,
                                                  begin + size);
            const long done = done_.fetch_add(size, std::memory_order_seq_cst) + size;
            if (done == count_.load(std::memory_order_relaxed) &&
                owner_sleeps_.load(std::memory_order_seq_cst)) {
                std::lock_guard<std::mutex> lock(door_);
                finished_.notify_one();
            }
            ticket = ticket_.load(std::memory_order_acquire);
        }
    }

    void wait(long count) {
        for (int look = 0; look < LOOKS; look++) {
            if (done_.load(std::memory_order_acquire) == count) return;
            rest();
        }
        std::unique_lock<std::mutex> lock(door_);
        owner_sleeps_.store(true, std::memory_order_seq_cst);
        finished_.wait(lock, [&] { return done_.load(std::memory_order_seq_cst) == count; });
        owner_sleeps_.store(false, std::memory_order_relaxed);
    }

    void serve(int place) {
        for (uint64_t seen = 0;;) {
            seen = next_job(seen);
            if (place < threads_.load(std::memory_order_relaxed)) help(seen);
        }
    }

    uint64_t next_job(uint64_t seen) {
        for (int look = 0; look < LOOKS; look++) {
            const uint64_t ticket = ticket_.load(std::memory_order_acquire);
            if (ticket >> 32 != seen) return ticket >> 32;
            rest();
        }
        std::unique_lock<std::mutex> lock(door_);
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        uint64_t job = seen;
        called_.wait(lock, [&] {
            job = ticket_.load(std::memory_order_seq_cst) >> 32;
            return job != seen;
        });
        sleeping_.fetch_sub(1, std::memory_order_relaxed);
        return job;
    }

    void hire() {
        const int place = static_cast<int>(workers_.size()) + 1;
        workers_.emplace_back([this, place] { serve(place); });
        workers_.back().detach();
    }

    // ------------------------------------------------------------------------ a crowded machine

    static constexpr double WINDOW = 0.01;      // seconds of work that are judged together
    static constexpr double MOST_WAITING = 0.15;  // of them, for a part that another thread holds
    static constexpr double FIRST_PAUSE = 0.2, LONGEST_PAUSE = 3.0;

    int allowed() {
        if (alone_until_ != Moment::time_point() && Moment::now() < alone_until_) return 1;
        return 1 << 30;
    }

    void judge(double whole, double waited) {
        whole_ += whole, waited_ += waited;
        if (whole_ < WINDOW) return;
        if (waited_ > MOST_WAITING * whole_) {
            alone_until_ = Moment::now() + std::chrono::duration_cast<Moment::duration>(
                                               std::chrono::duration<double>(pause_));
            pause_ = std::min(2 * pause_, LONGEST_PAUSE);
        } else {
            pause_ = std::max(0.9 * pause_, FIRST_PAUSE);  // crowds come back
        }
        whole_ = waited_ = 0;
    }

    std::mutex busy_, door_;
    std::condition_variable called_, finished_;
    std::vector<std::thread> workers_;
    std::atomic<uint64_t> ticket_{0};
    std::atomic<long> count_{0}, grain_{1}, done_{0};
    std::atomic<int> threads_{0}, sleeping_{0};
    std::atomic<bool> owner_sleeps_{false};
    std::atomic<Work> work_{nullptr};
    std::atomic<const void*> context_{nullptr};
    Moment::time_point alone_until_;
    double whole_ = 0, waited_ = 0, pause_ = FIRST_PAUSE;
};

// Never destroyed: its threads may outlive everything else. A child process has none of them and
// gets a pool of its own.
Pool* pool = nullptr;
std::once_flag watched;

Pool& the_pool() {
    std::call_once(watched, [] {
        pool = new Pool;
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
    });
    return *pool;
}

// -------------------------------------------------------------------------------------- memory

struct Memory {
    static constexpr int USES = static_cast<int>(dspark::Use::count);
    void* parts[USES] = {};
    long sizes[USES] = {};
    ~Memory() {
        for (void* part : parts) std::free(part);
    }
};

thread_local Memory memory;
thread_local double times[static_cast<int>(Kind::count)] = {};

// -------------------------------------------------------------------------------------- levels



#if defined(__x86_64__)
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
}
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
}
bool runs_avx512_bf16() {
    return runs_avx512() && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
}
// Tiles are used only by a process that has asked the system for their registers.
bool runs_amx() {
#if defined(__linux__)
    constexpr long ASK_FOR_STATE = 0x1023, TILES = 18;  // arch_prctl: ARCH_REQ_XCOMP_PERM
    unsigned a, b, c, d = 0;
    if (!runs_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool bf16 = d >> 22 & 1, tiles = d >> 24 & 1, bytes = d >> 25 & 1;
    return bf16 && tiles && bytes && !syscall(SYS_arch_prctl, ASK_FOR_STATE, TILES);
#else
    return false;
#endif
}
#elif defined(__aarch64__)
bool runs_neon() { return true; }
bool runs_neon_bf16() {  // with dot products of bytes

#if defined(__linux__)
    return (getauxval(AT_HWCAP2) & (1ul << 14)) && (getauxval(AT_HWCAP) & (1ul << 20));
#else
    return false;
#endif
}
#endif

struct Level {
    const Table* table;
    bool (*runs)();
};

}  // namespace
}  // namespace dspark

#define LEVEL(name, runs) {&dspark_##name, dspark::runs},
extern "C" {
#if defined(HAS_avx2)
extern const dspark::Table dspark_avx2;
#endif
#if defined(HAS_avx512)
extern const dspark::Table dspark_avx512;
#endif
#if defined(HAS_avx512_bf16)
extern const dspark::Table dspark_avx512_bf16;
#endif
#if defined(HAS_amx)
extern const dspark::Table dspark_amx;
#endif
#if defined(HAS_neon)
extern const dspark::Table dspark_neon;
#endif
#if defined(HAS_neon_bf16)
extern const dspark::Table dspark_neon_bf16;
#endif
}

static const dspark::Level LEVELS[] = {
#if defined(HAS_avx2)
    LEVEL(avx2, runs_avx2)
#endif
#if defined(HAS_avx512)
    LEVEL(avx512, runs_avx512)
#endif
#if defined(HAS_avx512_bf16)
    LEVEL(avx512_bf16, runs_avx512_bf16)
#endif
#if defined(HAS_amx)
    LEVEL(amx, runs_amx)
#endif
#if defined(HAS_neon)
    LEVEL(neon, runs_neon)
#endif
#if defined(HAS_neon_bf16)
    LEVEL(neon_bf16, runs_neon_bf16)
#endif
};

extern "C" {

// The table of a level, worst first, or null behind the last one that this processor runs.
const dspark::Table* dspark_level(long place) {
    for (const dspark::Level& level : LEVELS)
        if (level.runs() && !place--) return level.table;
    return nullptr;
}

void dspark_parallel(int threads, long count, long grain, dspark::Work work, const void* context) {
    dspark::the_pool().run(threads, count, grain, work, context);
}

void* dspark_scratch(dspark::Use kind, long bytes) {
    dspark::Memory& mine = dspark::memory;
    const int use = static_cast<int>(kind);
    if (mine.sizes[use] < bytes) {
        std::free(mine.parts[use]);
        mine.sizes[use] = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        mine.parts[use] = std::aligned_alloc(64, mine.sizes[use]);
    }
    return mine.parts[use];
}

double* dspark_times() { return dspark::times; }

// Seconds this thread has waited for kernels, by kind, since the last call.
void dspark_spent(double* seconds) {
    for (int kind = 0; kind < static_cast<int>(dspark::Kind::count); kind++) {
        seconds[kind] = dspark::times[kind];
        dspark::times[kind] = 0;
    }
}
}
