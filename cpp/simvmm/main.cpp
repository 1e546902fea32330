// cocoon-simvmm: behaves as Firecracker or as Cloud Hypervisor, by the name it is called by or else by its arguments,
// and breaks on request. docs/simulator.md says what it does.

#include <string>
#include <string_view>
#include <vector>

#include "simvmm/run.h"

int main(int argc, char** argv) { return cocoon::simvmm::run(std::vector<std::string>(argv, argv + argc)); }
