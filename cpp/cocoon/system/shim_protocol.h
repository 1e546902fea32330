#pragma once
// What spawn() and cocoon-shim say to each other. C and C++: both are built from this file.
//
// argv of the shim, each number in decimal:
//   [1]     COCOON_SHIM_PROTOCOL
//   [2]     descriptor of the answer pipe
//   [3]     descriptor of the folder of the exit file
//   [4]     name of the exit file in that folder
//   [5]     boot id, 8 hex digits
//   [6]     descriptor of the program's working folder
//   [7]     descriptor of the network namespace to enter, or -1
//   [8]     n, the number of descriptors that follow
//   [9…]    those that become 0, 1, 2, … n - 1 of the program; -1: closed there
//   then    "--", and the program's argv. The shim's environment is the program's.

#include <stdint.h>

#define COCOON_SHIM_PROTOCOL "1"
enum { COCOON_SHIM_MAX_FDS = 64 };

// Which step failed.
enum cocoon_shim_step {
  COCOON_SHIM_RUNNING = 0,      // none: `pid` and `start_ticks` say what runs
  COCOON_SHIM_FORK = 1,         // making a process
  COCOON_SHIM_NAMESPACE = 2,    // entering the network namespace
  COCOON_SHIM_FOLDER = 3,       // entering the working folder
  COCOON_SHIM_DESCRIPTORS = 4,  // arranging the descriptors
  COCOON_SHIM_EXEC = 5,         // starting the program
  COCOON_SHIM_IDENTITY = 6      // reading the program's start time; it has been killed
};

// Written whole, once. The pipe's end without it: the shim died.
struct cocoon_shim_answer {
  int32_t step;
  int32_t error;  // errno
  int64_t pid;
  uint64_t start_ticks;
};
