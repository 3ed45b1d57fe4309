# One static library per layer, so that the layering of docs/architecture.md is a link rule as well.
# saccade_layer(NAME SOURCES a.cpp ... [DEPENDS layer|library ...])
function(saccade_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(saccade_${name} STATIC ${ARG_SOURCES})
  target_include_directories(saccade_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(saccade_${name} PUBLIC ${ARG_DEPENDS})
endfunction()
