#pragma once
// From argv to the exit code.

#include <string>
#include <vector>

#include "simvmm/faults.h"

namespace cocoon::simvmm {

int run(const std::vector<std::string>& argv);
int run_firecracker(const std::vector<std::string>& argv, Faults& faults);
int run_cloud_hypervisor(const std::vector<std::string>& argv, Faults& faults);

}  // namespace cocoon::simvmm
